//! Plain http through a proxy: the request line names the whole address (RFC 9112, section 3.2.2). Proxies rarely let
//! anything but https be tunnelled.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine as _;
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, ShutdownHandle, Transport,
};
use ureq::{Error, ProxyProtocol};

/// Connects to the proxy of a request for http. Anything else is left to the connectors behind it.
#[derive(Debug)]
pub(crate) struct ForwardConnector;

impl Connector for ForwardConnector {
    type Out = Forwarded;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Forwarded>, Error> {
        let Some(proxy) = details.config.proxy().filter(|proxy| proxy.protocol() == ProxyProtocol::Http)
        else {
            return Ok(None);
        };
        if details.needs_tls() {
            return Ok(None);
        }
        let addresses = details.resolver.resolve(proxy.uri(), details.config, details.timeout)?;
        let mut last = io::Error::from(io::ErrorKind::ConnectionRefused);
        for address in &addresses {
            match TcpStream::connect_timeout(address, *details.timeout.after) {
                Ok(stream) => {
                    let stream = Arc::new(stream);
                    let weak = Arc::downgrade(&stream);
                    (details.register_shutdown)(weak as Weak<dyn ShutdownHandle>)?;
                    let config = details.config;
                    let sizes = (config.input_buffer_size(), config.output_buffer_size());
                    return Ok(Some(Forwarded {
                        stream,
                        buffers: LazyBuffers::new(sizes.0, sizes.1),
                        prefix: Some(prefix(details)),
                        credentials: proxy.username().map(|user| {
                            let pair = format!("{user}:{}", proxy.password().unwrap_or_default());
                            base64::prelude::BASE64_STANDARD.encode(pair)
                        }),
                    }));
                }
                Err(error) => last = error,
            }
        }
        Err(Error::Io(last))
    }
}

/// `http://host:port`
fn prefix(details: &ConnectionDetails<'_>) -> String {
    let authority = details.uri.authority().map_or("", |authority| authority.as_str());
    format!("http://{}", authority.rsplit('@').next().unwrap_or_default())
}

/// A connection to a proxy, for one request.
pub(crate) struct Forwarded {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
    /// What goes in front of the path of the first request line; taken once it is sent.
    prefix: Option<String>,
    credentials: Option<String>,
}

impl fmt::Debug for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forwarded").field("address", &self.stream.peer_addr().ok()).finish_non_exhaustive()
    }
}

/// The request line and headers for a proxy: `GET /path` becomes `GET http://host/path`.
fn rewritten(head: &[u8], prefix: &str, credentials: Option<&str>) -> Vec<u8> {
    let path = head.iter().position(|byte| *byte == b' ').map_or(0, |space| space + 1);
    let line = head.windows(2).position(|pair| pair == b"\r\n").map_or(head.len(), |end| end + 2);
    let mut out = [&head[..path], prefix.as_bytes(), &head[path..line.max(path)]].concat();
    if let Some(credentials) = credentials {
        out.extend_from_slice(format!("Proxy-Authorization: Basic {credentials}\r\n").as_bytes());
    }
    out.extend_from_slice(&head[line.max(path)..]);
    out
}

fn limit(timeout: NextTimeout) -> Result<Option<Duration>, Error> {
    match *timeout.after {
        Duration::ZERO => Err(Error::Timeout(timeout.reason)),
        _ if timeout.after.is_not_happening() => Ok(None),
        after => Ok(Some(after)),
    }
}

fn failed(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}

impl Transport for Forwarded {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        self.stream.set_write_timeout(limit(timeout)?)?;
        let output = &self.buffers.output()[..amount];
        let sent = match self.prefix.take() {
            Some(prefix) => {
                let head = rewritten(output, &prefix, self.credentials.as_deref());
                (&*self.stream).write_all(&head)
            }
            None => (&*self.stream).write_all(output),
        };
        sent.map_err(|error| failed(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        self.stream.set_read_timeout(limit(timeout)?)?;
        let count = loop {
            match (&*self.stream).read(self.buffers.input_append_buf()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read.map_err(|error| failed(error, timeout))?,
            }
        };
        self.buffers.input_appended(count);
        Ok(count > 0)
    }

    fn is_open(&mut self) -> bool {
        // One connection, one request.
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines_name_the_whole_address() {
        let head = b"GET /p?q HTTP/1.1\r\nhost: h\r\n\r\n";
        assert_eq!(rewritten(head, "http://h:1", None), b"GET http://h:1/p?q HTTP/1.1\r\nhost: h\r\n\r\n");
        assert_eq!(
            rewritten(head, "http://h", Some("eDp5")),
            b"GET http://h/p?q HTTP/1.1\r\nProxy-Authorization: Basic eDp5\r\nhost: h\r\n\r\n"
        );
    }
}
