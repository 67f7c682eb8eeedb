//! Plain HTTP against the admin port: one request per connection, over TLS, the authority checked.

use std::sync::Arc;

use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, body::Bytes, header::HeaderMap};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::{customer::tls, stack::Access};

/// What came back.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// All headers.
    pub headers: HeaderMap,
    /// The body as JSON; null when it is none.
    pub body: Value,
    /// The body as it was sent.
    pub text: String,
}

impl Answer {
    /// The body, if the status is what it should be.
    ///
    /// # Panics
    /// When the status is another one.
    #[must_use]
    pub fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.text);
        self.body
    }
}

/// One request, to be sent.
#[derive(Debug, Clone)]
pub struct Call<'a> {
    access: &'a Access,
    method: &'static str,
    path: String,
    headers: Vec<(String, String)>,
    body: Option<String>,
}

impl Access {
    /// A GET with the admin key.
    pub fn get(&self, path: &str) -> Call<'_> {
        self.call("GET", path)
    }

    /// A POST of `body` with the admin key.
    pub fn post(&self, path: &str, body: &Value) -> Call<'_> {
        Call { body: Some(body.to_string()), ..self.call("POST", path) }
    }

    fn call(&self, method: &'static str, path: &str) -> Call<'_> {
        let authorization = ("authorization".to_owned(), format!("Bearer {}", self.admin_key));
        Call { access: self, method, path: path.to_owned(), headers: vec![authorization], body: None }
    }
}

impl Call<'_> {
    /// Names the current workspace, as an organisation-wide key must.
    #[must_use]
    pub fn workspace(self, name: &str) -> Self {
        self.header("x-workspace", name)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Leaves the admin key out.
    #[must_use]
    pub fn without_key(mut self) -> Self {
        self.headers.retain(|(name, _)| name != "authorization");
        self
    }

    /// Sends `text` instead of JSON made from a value.
    #[must_use]
    pub fn raw_body(mut self, text: &str) -> Self {
        self.body = Some(text.to_owned());
        self
    }

    /// Sends it.
    ///
    /// # Panics
    /// When no answer comes.
    pub async fn send(self) -> Answer {
        let what = format!("{} {}", self.method, self.path);
        match self.try_send().await {
            Ok(answer) => answer,
            Err(error) => panic!("{what}: {error}"),
        }
    }

    /// Sends it; an error is one of the connection.
    pub async fn try_send(self) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let access = self.access;
        let stream = TcpStream::connect(("127.0.0.1", access.admin_port)).await?;
        let connector = TlsConnector::from(Arc::new(tls(&access.ca_pem, &[b"http/1.1"])));
        let stream = connector.connect("localhost".try_into()?, stream).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let mut request = Request::builder().method(self.method).uri(&self.path).header("host", "localhost");
        if self.body.is_some() {
            request = request.header("content-type", "application/json");
        }
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(Bytes::from(self.body.unwrap_or_default())))?;
        let (parts, body) = sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        driver.abort();
        let text = String::from_utf8_lossy(&body).into_owned();
        let json = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Ok(Answer { status: StatusCode::as_u16(&parts.status), headers: parts.headers, body: json, text })
    }
}
