//! What a client asks of the bundled application: the same words for a Socket.IO event and for a plain message.
//!
//! | word | fields | what it does |
//! |---|---|---|
//! | `join` | `room` | puts the client into the room |
//! | `leave` | `room` | takes it out |
//! | `publish` | `room`, `data` | sends `data` to the others in the room; the client must be in it |
//! | `direct` | `user`, `data` | sends `data` to every connection of the user |
//! | `presence` | `room`, `after` | says who is in the room, 1,000 at a time; `after` is the `next` of the answer before |
//! | `presence` | `user` | says where the user is |
//! | `presence` | `status` | what others are told of this connection; `online` until then |
//!
//! Rules: a field that is missing, unknown or of the wrong kind is a fault that says what would be right. A room that
//! the node uses itself cannot be joined: `user:…` (a user's connections) and 20 characters of base64url (one socket).

use crate::auth::User;
use socketio_redis::value::Value;

/// The most bytes of a room's name.
const MAX_ROOM_NAME: usize = 128;
/// What the rooms of users begin with.
pub(crate) const USER_ROOM_PREFIX: &str = "user:";

/// The most bytes of a status.
const MAX_STATUS: usize = 32;

/// The words, for messages.
const WORDS: &str = "join, leave, publish, direct or presence";

/// One request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum AppRequest {
    /// Into this room.
    Join(String),
    /// Out of it.
    Leave(String),
    /// To the others in this room.
    Publish(String, Value),
    /// To a user.
    Direct(User, Value),
    /// Who is in this room?
    RoomPresence {
        /// The room.
        room: String,
        /// The id of the last member that the client knows already.
        after: Option<String>,
    },
    /// Is this user there?
    UserPresence(User),
    /// Others are told this of the connection.
    Status(String),
}

impl AppRequest {
    /// Reads the request `word` with these fields; `id` and `type` are for the protocol around it.
    ///
    /// # Errors
    ///
    /// What is wrong, and what would be right: for the client.
    pub(crate) fn read(word: &str, fields: &[(Box<str>, Value)]) -> Result<Self, String> {
        let known: &[&str] = match word {
            "join" | "leave" => &["room"],
            "publish" => &["room", "data"],
            "direct" => &["user", "data"],
            "presence" => &["room", "after", "user", "status"],
            _ => return Err(format!("{} is no request; write {WORDS}", quoted(word))),
        };
        let stranger = fields.iter().find(|(name, _)| !known.contains(&&**name));
        if let Some((name, _)) = stranger.filter(|(name, _)| !matches!(&**name, "id" | "type")) {
            return Err(format!("{word} has no field {}; it has {}", quoted(name), known.join(" and ")));
        }
        let fields = RequestFields { word, fields };
        match word {
            "join" => Ok(Self::Join(fields.room()?)),
            "leave" => Ok(Self::Leave(fields.room()?)),
            "publish" => Ok(Self::Publish(fields.room()?, fields.data()?)),
            "direct" => Ok(Self::Direct(fields.user()?, fields.data()?)),
            _ => match ["room", "user", "status"].map(|name| fields.find(name).is_some()) {
                [true, false, false] => {
                    Ok(Self::RoomPresence { room: fields.room()?, after: fields.after()? })
                }
                _ if fields.find("after").is_some() => Err("after goes with a room".into()),
                [false, true, false] => Ok(Self::UserPresence(fields.user()?)),
                [false, false, true] => Ok(Self::Status(fields.status()?)),
                _ => {
                    Err("presence asks about a room or a user, or sets the status; write one of the three"
                        .into())
                }
            },
        }
    }
}

/// The fields of one request.
struct RequestFields<'a> {
    word: &'a str,
    fields: &'a [(Box<str>, Value)],
}

impl RequestFields<'_> {
    fn find(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|(there, _)| **there == *name).map(|(_, value)| value)
    }

    fn text(&self, name: &str) -> Result<&str, String> {
        match self.find(name) {
            Some(value) => value.as_text().ok_or_else(|| format!("{name} of {} is text", self.word)),
            None => Err(format!("{} has no {name}; write \"{name}\": \"…\"", self.word)),
        }
    }

    fn room(&self) -> Result<String, String> {
        let room = self.text("room")?;
        check_room(room)?;
        Ok(room.into())
    }

    fn after(&self) -> Result<Option<String>, String> {
        self.find("after").is_some().then(|| self.text("after").map(str::to_owned)).transpose()
    }

    fn user(&self) -> Result<User, String> {
        User::parse(self.text("user")?)
            .ok_or_else(|| "a user's name has 1 to 128 bytes and no control characters".into())
    }

    fn status(&self) -> Result<String, String> {
        let status = self.text("status")?;
        let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        match (1..=MAX_STATUS).contains(&status.len()) && status.bytes().all(is_word) {
            true => Ok(status.into()),
            false => Err(format!("a status is 1 to {MAX_STATUS} of a-z, 0-9 and -, as `online` or `away`")),
        }
    }

    fn data(&self) -> Result<Value, String> {
        self.find("data").cloned().ok_or_else(|| format!("{} has no data; write \"data\": …", self.word))
    }
}

/// Whether clients may use a room of this name.
///
/// # Errors
///
/// Why not: for the client.
pub(crate) fn check_room(room: &str) -> Result<(), String> {
    if room.is_empty() || room.len() > MAX_ROOM_NAME || room.chars().any(char::is_control) {
        return Err(format!("a room's name has 1 to {MAX_ROOM_NAME} bytes and no control characters"));
    }
    if room.starts_with(USER_ROOM_PREFIX) {
        return Err(
            "rooms that begin with `user:` hold a user's connections; write direct to reach a user".into()
        );
    }
    let is_sid =
        room.len() == 20 && room.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if is_sid {
        return Err("20 characters of A-Za-z0-9-_ are the room of one socket; take another name".into());
    }
    Ok(())
}

/// What a client wrote, in a message to it: short and without control characters.
fn quoted(text: &str) -> String {
    let shown: String = text.chars().take(40).filter(|c| !c.is_control()).collect();
    format!("`{shown}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(word: &str, json: &str) -> Result<AppRequest, String> {
        AppRequest::read(word, Value::from_json(json).unwrap().as_map().unwrap())
    }

    #[test]
    fn each_word_is_read_with_its_fields() {
        let user = User::parse("bob").unwrap();
        assert_eq!(read("join", r#"{"room":"r","id":1,"type":"join"}"#), Ok(AppRequest::Join("r".into())));
        assert_eq!(read("leave", r#"{"room":"r"}"#), Ok(AppRequest::Leave("r".into())));
        let null = AppRequest::Publish("r".into(), Value::Null);
        assert_eq!(read("publish", r#"{"room":"r","data":null}"#), Ok(null));
        let direct = AppRequest::Direct(user.clone(), Value::from_json("[1]").unwrap());
        assert_eq!(read("direct", r#"{"user":"bob","data":[1]}"#), Ok(direct));
        assert_eq!(
            read("presence", r#"{"room":"r"}"#),
            Ok(AppRequest::RoomPresence { room: "r".into(), after: None })
        );
        let page = AppRequest::RoomPresence { room: "r".into(), after: Some("x".into()) };
        assert_eq!(read("presence", r#"{"room":"r","after":"x"}"#), Ok(page));
        assert_eq!(read("presence", r#"{"user":"bob"}"#), Ok(AppRequest::UserPresence(user)));
        assert_eq!(read("presence", r#"{"status":"away"}"#), Ok(AppRequest::Status("away".into())));
    }

    #[test]
    fn each_fault_says_what_would_be_right() {
        let long = format!(r#"{{"room":"{}"}}"#, "x".repeat(129));
        let cases = [
            ("jion", "{}", "write join, leave, publish, direct or presence"),
            ("join", "{}", r#"write "room": "…""#),
            ("join", r#"{"room":7}"#, "room of join is text"),
            ("join", r#"{"room":""}"#, "1 to 128 bytes"),
            ("join", &long, "1 to 128 bytes"),
            ("join", r#"{"room":"a\nb"}"#, "control characters"),
            ("join", r#"{"room":"user:bob"}"#, "write direct"),
            ("join", r#"{"room":"AAAAAAAAAAAAAAAAAAAB"}"#, "one socket"),
            ("join", r#"{"room":"r","data":1}"#, "join has no field `data`; it has room"),
            ("publish", r#"{"room":"r"}"#, r#"write "data": …"#),
            ("publish", r#"{"data":1}"#, r#"write "room": "…""#),
            ("direct", r#"{"user":"","data":1}"#, "1 to 128 bytes"),
            ("presence", "{}", "one of the three"),
            ("presence", r#"{"room":"r","user":"u"}"#, "one of the three"),
            ("presence", r#"{"user":"u","status":"away"}"#, "one of the three"),
            ("presence", r#"{"user":"u","after":"x"}"#, "after goes with a room"),
            ("presence", r#"{"room":"r","after":1}"#, "after of presence is text"),
            ("presence", r#"{"status":1}"#, "status of presence is text"),
            ("presence", r#"{"status":""}"#, "1 to 32 of a-z"),
            ("presence", r#"{"status":"Back at 5"}"#, "1 to 32 of a-z"),
        ];
        for (word, json, said) in cases {
            let fault = read(word, json).unwrap_err();
            assert!(fault.contains(said), "{word} {json}: {fault}");
        }
    }
}
