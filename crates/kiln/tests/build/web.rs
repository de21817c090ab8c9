//! A small web server on this machine's loopback.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// What a server sends for a path.
#[derive(Clone, Debug, Default)]
pub(crate) struct Page {
    pub(crate) headers: Vec<String>,
    pub(crate) body: Vec<u8>,
    /// It never comes to an end.
    pub(crate) endless: bool,
    /// Only who shows credentials gets it.
    pub(crate) locked: bool,
}

impl Page {
    pub(crate) fn new(body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::default() }
    }

    pub(crate) fn header(mut self, header: &str) -> Self {
        self.headers.push(header.to_owned());
        self
    }
}

#[derive(Debug, Default)]
struct State {
    pages: BTreeMap<String, Page>,
    /// Status and path of each answer.
    log: Vec<String>,
}

/// A server until the test ends.
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Web {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { address, state }
    }

    pub(crate) fn put(&self, path: &str, page: Page) {
        self.state.lock().expect("alive").pages.insert(path.to_owned(), page);
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// What was answered since this was last asked.
    pub(crate) fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().expect("alive").log)
    }
}

fn serve(mut stream: TcpStream, state: &Mutex<State>) {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).unwrap_or(0) == 0 {
            return;
        }
        head.push(byte[0]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
    let (status, page) = {
        let mut state = state.lock().expect("alive");
        let page = state.pages.get(path.split('?').next().unwrap_or_default()).cloned();
        let status = match &page {
            None => "404 Not Found",
            Some(page) if page.locked && !head.to_ascii_lowercase().contains("\nauthorization: basic ") => {
                "401 Unauthorized"
            }
            Some(page) if page.headers.iter().any(|header| header.starts_with("Location:")) => "302 Found",
            Some(page) if is_known(&head, page) => "304 Not Modified",
            Some(_) => "200 OK",
        };
        state.log.push(format!("{} {path}", &status[..3]));
        (status, page.unwrap_or_default())
    };
    let body = if status.starts_with("200") { &page.body[..] } else { &[] };
    let mut answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\n");
    if !page.endless {
        answer.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    if status.starts_with("401") {
        answer.push_str("WWW-Authenticate: Basic realm=\"test\"\r\n");
    }
    for header in &page.headers {
        answer.push_str(header);
        answer.push_str("\r\n");
    }
    let _ = stream.write_all(answer.as_bytes());
    let _ = stream.write_all(b"\r\n");
    let _ = stream.write_all(body);
    while page.endless && stream.write_all(&[b'x'; 1024]).is_ok() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Whether the request says that it has what the page is.
fn is_known(head: &str, page: &Page) -> bool {
    let value = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let headers = page.headers.join("\n");
    let same =
        |asked: &str, has: &str| value(head, asked).is_some_and(|asked| Some(asked) == value(&headers, has));
    same("if-none-match", "etag") || same("if-modified-since", "last-modified")
}
