//! A small HTTP server: one thread, one connection and request at a time, answers as bytes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_remote::{Answer, Client, Limits, Proxies, Settings};

/// A server until the test ends; remembers what it was asked.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers each request with what `answer` writes; then the connection is closed.
    pub(crate) fn start(answer: impl Fn(&str, &mut dyn Write) + Send + 'static) -> Self {
        Self::over(answer, Box::new)
    }

    /// As [`Server::start`], with something between the connection and the server.
    pub(crate) fn over<S: Read + Write + 'static>(
        answer: impl Fn(&str, &mut dyn Write) + Send + 'static,
        wrap: impl Fn(TcpStream) -> Box<S> + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = wrap(stream.unwrap());
                let Some(head) = read_head(&mut stream) else { continue };
                seen.lock().unwrap().push(head.clone());
                answer(&head, &mut stream);
                let _ = stream.flush();
            }
        });
        Self { address, requests }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

/// Request line and headers.
pub(crate) fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// The path of a request.
pub(crate) fn path(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or_default()
}

/// A whole answer.
pub(crate) fn reply(out: &mut dyn Write, status: &str, headers: &[&str], body: &[u8]) {
    let mut head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n", body.len());
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    let _ = out.write_all(head.as_bytes());
    let _ = out.write_all(b"\r\n");
    let _ = out.write_all(body);
}

pub(crate) fn settings() -> Settings {
    let limits = Limits {
        stall: Duration::from_secs(1),
        connect: Duration::from_secs(5),
        bytes: 1 << 20,
        ..Limits::default()
    };
    Settings { proxies: Proxies::default(), bundle: None, agent: "kiln-test/1".to_owned(), limits }
}

/// Everything at an address.
pub(crate) fn fetch(settings: &Settings, url: &str) -> kiln_remote::Result<Vec<u8>> {
    match Client::new(settings)?.get(url, None)? {
        Answer::Unchanged => panic!("nothing was known"),
        Answer::Body(mut body) => read(&mut body),
    }
}

pub(crate) fn read(body: &mut kiln_remote::Download) -> kiln_remote::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 4096];
    loop {
        match body.read(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}
