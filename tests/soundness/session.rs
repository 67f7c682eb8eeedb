//! One session with PostgreSQL around the gate, in which any text may do its worst: COPY is answered, time is bounded,
//! and a connection that is lost says so.

use std::{io, path::Path, time::Duration};

use portcullis_tests::{
    Access,
    raw::{Message, Pipeline, Wire},
};

use crate::corpus::Text;

/// How long one text may take before its backend is ended.
const PATIENCE: Duration = Duration::from_secs(15);

/// Who logs in, where, and as what.
#[derive(Clone, Debug)]
pub struct Login {
    /// The startup packet.
    pub parameters: Vec<(String, String)>,
}

impl Login {
    /// A login with these startup parameters, in which no statement takes long unless it says so itself.
    pub fn new(parameters: &[(&str, &str)]) -> Login {
        let bounds = [("client_encoding", "UTF8"), ("statement_timeout", "2000"), ("lock_timeout", "1000")];
        let all = parameters.iter().chain(&bounds);
        Login { parameters: all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect() }
    }

    /// The same with one more parameter.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Login {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// What a text was answered with.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// SQLSTATE and message of the first error.
    pub error: Option<(String, String)>,
    /// The rows of all results, as text.
    pub rows: Vec<Vec<Option<String>>>,
    /// The last ReadyForQuery: `I`, `T` or `E`.
    pub status: char,
}

impl Answer {
    /// The SQLSTATE of the error; empty where there is none.
    pub fn sqlstate(&self) -> &str {
        self.error.as_ref().map_or("", |(code, _)| code)
    }
}

/// A session.
#[derive(Debug)]
pub struct Session {
    wire: Wire,
    access: Access,
    login: Login,
    /// The last text that was not the test's own: whatever goes wrong next is its doing.
    last: String,
}

impl Session {
    /// Logs in.
    pub async fn open(access: &Access, login: &Login) -> Session {
        let wire = connect(&access.home, access.postgres_port, login).await;
        Session { wire, access: access.clone(), login: login.clone(), last: String::new() }
    }

    /// Ends this session and begins another with the same login.
    pub async fn reopen(&mut self) {
        self.end().await;
        self.wire = connect(&self.access.home, self.access.postgres_port, &self.login).await;
    }

    /// The backend's process id.
    pub fn pid(&self) -> i32 {
        let key = self.wire.cancel_key.as_deref().and_then(|key| key.first_chunk::<4>()).expect("BackendKeyData");
        i32::from_be_bytes(*key)
    }

    /// Ends the backend, and waits until it has gone.
    pub async fn end(&mut self) {
        let superuser = self.access.superuser("postgres").await;
        superuser.execute("SELECT pg_terminate_backend($1, 10000)", &[&self.pid()]).await.expect("a backend ends");
    }

    /// Runs a text. `None`: the session has ended over it, and another has begun.
    pub async fn run(&mut self, text: &Text) -> Option<Answer> {
        text.sql.clone_into(&mut self.last);
        if text.surface == "parse" { self.extended(&text.sql).await } else { self.simple(&text.sql).await }
    }

    async fn simple(&mut self, sql: &str) -> Option<Answer> {
        let mut pipeline = Pipeline::new();
        pipeline.query(sql);
        self.exchange(&pipeline).await
    }

    /// With NULL for every parameter.
    async fn extended(&mut self, sql: &str) -> Option<Answer> {
        let mut parse = Pipeline::new();
        parse.parse("", sql).describe(b'S', "").sync();
        let parsed = self.messages(&parse).await?;
        let types = parsed.iter().find(|message| message.tag == b't');
        let Some(types) = types else { return Some(answer(&parsed)) };
        let count = types.body.first_chunk::<2>().map_or(0, |count| u16::from_be_bytes(*count));
        let mut run = Pipeline::new();
        run.bind("", "", &vec![None; usize::from(count)]).execute("", 0).sync();
        self.exchange(&run).await
    }

    /// Runs a statement of the test's own, which must succeed; gives its rows.
    pub async fn own(&mut self, sql: &str) -> Vec<Vec<Option<String>>> {
        self.ask(sql).await.unwrap_or_else(|error| panic!("{error}: {sql}, after {}", self.last))
    }

    /// Runs a statement of the test's own; gives its rows, or what the server said.
    pub async fn ask(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, String> {
        let answer = self.simple(sql).await.ok_or("the session ended")?;
        match answer.error {
            None => Ok(answer.rows),
            Some((code, message)) => Err(format!("{code} {message}")),
        }
    }

    async fn exchange(&mut self, pipeline: &Pipeline) -> Option<Answer> {
        Some(answer(&self.messages(pipeline).await?))
    }

    /// Sends a pipeline; gives all messages up to its last ReadyForQuery. `None`: as with [`Session::run`].
    pub async fn messages(&mut self, pipeline: &Pipeline) -> Option<Vec<Message>> {
        match tokio::time::timeout(PATIENCE, converse(&mut self.wire, pipeline)).await {
            Ok(Ok(messages)) => Some(messages),
            Ok(Err(_)) | Err(_) => {
                self.reopen().await;
                None
            }
        }
    }
}

async fn connect(home: &Path, port: u16, login: &Login) -> Wire {
    let parameters: Vec<(&str, &str)> =
        login.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    Wire::around_the_gate(home, port, &parameters).await
}

async fn converse(wire: &mut Wire, pipeline: &Pipeline) -> io::Result<Vec<Message>> {
    /// More rows than this of one answer are read away.
    const MESSAGES_MAX: usize = 4096;
    const COPY_DONE: &[u8] = &[b'c', 0, 0, 0, 4];
    const SYNC: &[u8] = &[b'S', 0, 0, 0, 4];
    wire.send(&pipeline.bytes).await?;
    let mut messages = Vec::new();
    let mut owed = pipeline.ready_owed;
    while owed > 0 {
        let message = wire.next().await?;
        match message.tag {
            // CopyDone: nothing comes. A Sync that was there before the copy began has been ignored.
            b'G' if pipeline.bytes.ends_with(SYNC) => wire.send(&[COPY_DONE, SYNC].concat()).await?,
            b'G' => wire.send(COPY_DONE).await?,
            b'Z' => owed -= 1,
            _ => {}
        }
        if messages.len() < MESSAGES_MAX || !matches!(message.tag, b'D' | b'd') {
            messages.push(message);
        }
    }
    Ok(messages)
}

fn answer(messages: &[Message]) -> Answer {
    let mut answer = Answer::default();
    for message in messages {
        match message.tag {
            b'E' if answer.error.is_none() => {
                let field = |code| message.field(code).unwrap_or_default();
                answer.error = Some((field(b'C'), field(b'M')));
            }
            b'D' => answer.rows.push(message.columns()),
            b'Z' => answer.status = message.body.first().copied().map_or('?', char::from),
            _ => {}
        }
    }
    answer
}
