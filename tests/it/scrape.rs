//! A scrape of `/metrics` through a reader that takes nothing but what the text format 0.0.4 allows.

use std::collections::{BTreeMap, BTreeSet};

use mainstay::app::App;
use tokio::net::TcpStream;

use crate::harness::{RawStream, soon};

/// One scrape.
#[derive(Debug, Default)]
pub struct Scrape {
    /// The type of each family.
    pub types: BTreeMap<String, String>,
    /// The samples in the order of the text.
    pub samples: Vec<Sample>,
}

/// One line of it.
#[derive(Debug, Clone)]
pub struct Sample {
    /// As written, `_bucket` and the like included.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub value: f64,
}

impl Scrape {
    /// What `app` says now.
    pub async fn of(app: &App) -> Self {
        let mut admin = RawStream(soon(TcpStream::connect(app.admin().unwrap())).await.unwrap());
        admin.send("GET /metrics HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let answer = String::from_utf8(admin.read_to_end().await).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
        Self::read(body).unwrap_or_else(|fault| panic!("{fault}"))
    }

    /// Scrapes until `is_so`, within the deadline.
    pub async fn until(app: &App, is_so: impl Fn(&Self) -> bool) -> Self {
        soon(async {
            loop {
                let scrape = Self::of(app).await;
                if is_so(&scrape) {
                    return scrape;
                }
            }
        })
        .await
    }

    /// The families of a text, each with help, type and samples in one place; or what is wrong with it.
    pub fn read(text: &str) -> Result<Self, String> {
        let mut scrape = Self::default();
        let (mut family, mut helped, mut series) = (String::new(), String::new(), BTreeSet::new());
        for line in text.strip_suffix('\n').ok_or("no line feed at the end")?.split('\n') {
            let wrong = |what: &str| Err(format!("{what}: {line}"));
            if let Some(help) = line.strip_prefix("# HELP ") {
                helped = help.split(' ').next().unwrap_or_default().to_owned();
            } else if let Some(comment) = line.strip_prefix("# TYPE ") {
                let (name, kind) = comment.split_once(' ').ok_or("no type")?;
                if name != helped || scrape.types.insert(name.into(), kind.into()).is_some() {
                    return wrong("no help before it, or a family twice");
                }
                family = name.into();
            } else {
                let sample = Sample::read(line).ok_or(format!("no sample: {line}"))?;
                let ends: &[&str] = match scrape.types.get(&family).map(String::as_str) {
                    Some("histogram") => &["_bucket", "_sum", "_count"],
                    Some("counter" | "gauge") => &[""],
                    _ => return wrong("of an unknown type"),
                };
                if !ends.iter().any(|end| sample.name == format!("{family}{end}")) {
                    return wrong("out of its family");
                }
                if !series.insert((sample.name.clone(), sample.labels.clone())) {
                    return wrong("twice");
                }
                scrape.samples.push(sample);
            }
        }
        Ok(scrape)
    }

    /// The samples of this name whose labels have these values.
    pub fn with<'a>(&'a self, name: &str, labels: &[(&str, &str)]) -> Vec<&'a Sample> {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels.iter().all(|(key, value)| sample.labels.get(*key).is_some_and(|is| is == value))
        };
        self.samples.iter().filter(has).collect()
    }

    /// Their sum; 0 when there are none.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.with(name, labels).iter().map(|sample| sample.value).sum()
    }

    /// The value of the one that there is, if it is.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let found = self.with(name, labels);
        assert!(found.len() < 2, "{found:?}");
        found.first().map(|sample| sample.value)
    }
}

impl Sample {
    /// `name{label="value",...} number`.
    fn read(line: &str) -> Option<Self> {
        let name = word(line);
        let (mut rest, mut labels) = (&line[name.len()..], BTreeMap::new());
        if let Some(pairs) = rest.strip_prefix('{') {
            rest = pairs;
            loop {
                let label = word(rest);
                let (value, after) = quoted(rest[label.len()..].strip_prefix("=\"")?)?;
                if label.is_empty() || labels.insert(label.to_owned(), value).is_some() {
                    return None;
                }
                rest = match after.strip_prefix(',') {
                    Some(more) => more,
                    None => break rest = after.strip_prefix('}')?,
                };
            }
        }
        let value = rest.strip_prefix(' ')?.parse().ok()?;
        (!name.is_empty()).then(|| Self { name: name.to_owned(), labels, value })
    }
}

/// The name at the head of `text`.
fn word(text: &str) -> &str {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    if text.starts_with(|c: char| c.is_ascii_digit()) { "" } else { &text[..end] }
}

/// What stands before the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        value.push(match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match chars.next()?.1 {
                'n' => '\n',
                c @ ('\\' | '"') => c,
                _ => return None,
            },
            c => c,
        });
    }
    None
}

#[test]
fn the_reader_sees_what_is_wrong() {
    let head = "# HELP a b\n# TYPE a counter\n";
    for wrong in [
        "a{b=\"c} 1",
        "a{b=c} 1",
        "a one",
        "a{b=\"\\x\"} 1",
        "a{b=\"c\"}1",
        "",
        "x 1",
        "a{} 1",
        "a 1\na 2",
        "1a 1",
    ] {
        assert!(Scrape::read(&format!("{head}{wrong}\n")).is_err(), "{wrong}");
    }
    for wrong in [
        "a 1\n",
        "# TYPE a counter\na 1\n",
        "# HELP a b\n# TYPE a odd\na 1\n",
        "# HELP a b\n# TYPE a counter\na 1",
    ] {
        assert!(Scrape::read(wrong).is_err(), "{wrong}");
    }
    let sound = Scrape::read(&format!("{head}a{{b=\"x\\\"y\\n\\\\\",c=\"\"}} 1e3\n")).unwrap();
    assert_eq!((sound.samples[0].labels["b"].as_str(), sound.samples[0].value), ("x\"y\n\\", 1000.0));
}
