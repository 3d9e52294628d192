//! `${NAME}` and `${NAME:-default}` inside a value: what they become.
//!
//! The default counts when the variable is not set or empty, as in a shell; it ends at the first `}` and is taken as
//! it stands. `$${` is a literal `${`; a `$` before anything else is a `$`.

use super::fault::quoted;

/// Looks up an environment variable.
pub type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// `text` with its variables put in, or what is wrong with each that cannot be.
pub(super) fn put_in(text: &str, env: Env) -> Result<String, Vec<String>> {
    let mut out = String::with_capacity(text.len());
    let mut wrong = Vec::new();
    let mut rest = text;
    while let Some(dollar) = rest.find("${") {
        let (before, from) = rest.split_at(dollar);
        let after = &from[2..];
        if let Some(literal) = before.strip_suffix('$') {
            out.push_str(literal);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some((inside, tail)) = after.split_once('}') else {
            wrong.push(format!("{} has no end; write ${{NAME}} or ${{NAME:-default}}", quoted(from)));
            rest = "";
            continue;
        };
        match value(inside, env) {
            Ok(value) => out.push_str(&value),
            Err(message) => wrong.push(message),
        }
        rest = tail;
    }
    out.push_str(rest);
    if wrong.is_empty() { Ok(out) } else { Err(wrong) }
}

/// The value of what stands between `${` and `}`.
fn value(inside: &str, env: Env) -> Result<String, String> {
    let (name, default) = match inside.split_once(":-") {
        Some((name, default)) => (name, Some(default)),
        None => (inside, None),
    };
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !begins_well || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        let shown = quoted(&format!("${{{inside}}}"));
        return Err(format!(
            "{shown} is no variable; write ${{NAME}} or ${{NAME:-default}}, `$${{` for a literal one"
        ));
    }
    match (env(name), default) {
        (Some(value), None) => Ok(value),
        (Some(value), Some(_)) if !value.is_empty() => Ok(value),
        (_, Some(default)) => Ok(default.to_owned()),
        (None, None) => Err(format!("the environment has no {name}; set it, or write ${{{name}:-default}}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "PORT" => Some("3001".into()),
            "EMPTY" => Some(String::new()),
            "SNEAKY" => Some("${PORT}".into()),
            _ => None,
        }
    }

    #[test]
    fn a_variable_is_replaced_by_its_value_and_else_by_its_default() {
        assert_eq!(put_in("127.0.0.1:${PORT}", &env).unwrap(), "127.0.0.1:3001");
        assert_eq!(put_in("${PORT:-1}${GONE:-2}${EMPTY:-3}${GONE:-}", &env).unwrap(), "300123");
        assert_eq!(put_in("${EMPTY}", &env).unwrap(), "");
    }

    #[test]
    fn dollars_that_begin_no_variable_stay() {
        for text in ["", "$", "5$", "$5", "$PORT", "a$}b{", "{}"] {
            assert_eq!(put_in(text, &env).unwrap(), text);
        }
        assert_eq!(put_in("$${PORT}", &env).unwrap(), "${PORT}");
    }

    #[test]
    fn a_value_is_not_expanded_again() {
        assert_eq!(put_in("${SNEAKY}", &env).unwrap(), "${PORT}");
    }

    #[test]
    fn every_variable_that_cannot_be_put_in_is_named() {
        let wrong = put_in("${GONE} ${PORT} ${1X} ${} ${ALSO_GONE", &env).unwrap_err();
        assert_eq!(wrong.len(), 4, "{wrong:?}");
        assert!(wrong[0].contains("no GONE"), "{wrong:?}");
        assert!(wrong[3].contains("has no end"), "{wrong:?}");
    }
}
