//! Requests: which proxy and which certificates, which redirects are followed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ureq::http::header::{ETAG, IF_NONE_MATCH, LOCATION};
use ureq::http::{HeaderMap, HeaderName};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{ConnectProxyConnector, Connector as _, RustlsConnector, TcpConnector};
use ureq::{Agent, Body, Proxy};

use crate::address::{Address, shown};
use crate::download::Download;
use crate::error::{Error, Result};
use crate::forward::ForwardConnector;
use crate::proxy::Proxies;

/// What a client needs to know of the machine. Nothing in it was read from the environment by this crate.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Which proxies requests go through.
    pub proxies: Proxies,
    /// A file of PEM certificates: who may vouch for servers. It is read with the first client.
    pub bundle: Option<PathBuf>,
    /// Says who asks.
    pub agent: String,
    /// How much is waited for and taken.
    pub limits: Limits,
}

/// How much is waited for and taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// How many redirects are followed.
    pub redirects: u32,
    /// For one connection to be made.
    pub connect: Duration,
    /// How long a server may send nothing, or fewer than [`Limits::STALLED`] bytes.
    pub stall: Duration,
    /// The most that a body may have, uncompressed.
    pub bytes: u64,
}

impl Limits {
    /// A server that sends fewer bytes than this within [`Limits::stall`] is stalled.
    pub const STALLED: u64 = 512;
}

impl Default for Limits {
    /// Ten redirects (as Go and curl-based peers), 30 seconds to connect, a minute of silence, 64 GiB.
    fn default() -> Self {
        Self {
            redirects: 10,
            connect: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            bytes: 64 << 30,
        }
    }
}

/// What is known of a resource already. Only a strong ETag tells each version from all others (RFC 9110, section 8.8.3): a
/// date does not, since servers call whatever is not later than it unchanged.
#[derive(Clone, Copy)]
pub struct Known<'a> {
    /// Its strong ETag, as the server wrote it.
    pub tag: &'a str,
    /// Whether it was found at this address: where redirects ended. Nobody else is asked about it or believed.
    pub is_at: &'a dyn Fn(&str) -> bool,
}

/// What came of a request.
#[derive(Debug)]
pub enum Answer {
    /// It is what was known.
    Unchanged,
    /// The resource.
    Body(Box<Download>),
}

/// Makes requests. One for each command, so that it can be stopped; clones are the same client.
#[derive(Clone)]
pub struct Client {
    proxies: Proxies,
    limits: Limits,
    has_roots: bool,
    direct: Agent,
    /// Through the proxies for http and for https.
    through: [Option<Agent>; 2],
    stopped: Arc<AtomicBool>,
}

impl std::fmt::Debug for Client {
    /// Agents would tell the proxies' passwords.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut told = f.debug_struct("Client");
        told.field("proxies", &self.proxies).field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Client {
    /// A client. Connects nowhere yet.
    ///
    /// # Errors
    /// When the certificates cannot be read, or a proxy's address makes no sense.
    pub fn new(settings: &Settings) -> Result<Self> {
        let roots = roots(settings)?;
        let has_roots = roots.is_some();
        let roots = RootCerts::Specific(Arc::new(roots.unwrap_or_default()));
        let proxies = &settings.proxies;
        let through = |proxy: &Option<String>, scheme| {
            let Some(address) = proxy.as_deref().filter(|proxy| !proxy.is_empty()) else { return Ok(None) };
            let parsed = Proxy::new(address).ok().filter(|proxy| {
                matches!(proxy.protocol(), ureq::ProxyProtocol::Http | ureq::ProxyProtocol::Https)
            });
            let parsed = parsed.ok_or_else(|| Error::Proxy { proxy: shown(address), scheme })?;
            Ok(Some(agent(settings, &roots, Some(parsed))))
        };
        Ok(Self {
            through: [through(&proxies.http, "http")?, through(&proxies.https, "https")?],
            direct: agent(settings, &roots, None),
            proxies: proxies.clone(),
            limits: settings.limits,
            has_roots,
            stopped: Arc::default(),
        })
    }

    /// Ends everything that this client does, in other threads, too; nothing can be asked for afterwards.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for agent in self.through.iter().flatten().chain([&self.direct]) {
            agent.clone().shutdown();
        }
    }

    /// Asks for what is at an address. If some of it is known, it is asked whether that changed. Idempotent.
    ///
    /// # Errors
    /// When the address makes no sense, the server cannot be reached or says no, or sends on to where nobody should go.
    pub fn get(&self, url: &str, known: Option<Known<'_>>) -> Result<Answer> {
        let first = Address::parse(url)?;
        let mut address = first.clone();
        for _ in 0..=self.limits.redirects {
            let tag = known.filter(|known| (known.is_at)(&address.exact())).map(|known| known.tag);
            let response = self.ask(&address, tag)?;
            let status = response.status().as_u16();
            let headers = response.headers();
            match status {
                304 if tag.is_some() => return Ok(Answer::Unchanged),
                200..=299 => {
                    // Some servers answer with all of what is known already, though they name it by the same tag.
                    if tag.is_some() && strong_tag(headers).as_deref() == tag {
                        return Ok(Answer::Unchanged);
                    }
                    let stopped = Arc::clone(&self.stopped);
                    return Download::new(first.shown(), address.exact(), response, self.limits, stopped)
                        .map(|download| Answer::Body(Box::new(download)));
                }
                301 | 302 | 303 | 307 | 308 => address = next(&address, headers, status)?,
                status => return Err(Error::Status { url: address.shown(), status }),
            }
        }
        Err(Error::Redirects { url: first.shown(), limit: self.limits.redirects })
    }

    fn ask(&self, address: &Address, tag: Option<&str>) -> Result<ureq::http::Response<Body>> {
        if address.is_https() && !self.has_roots {
            return Err(Error::NoBundle { url: address.shown() });
        }
        let [http, https] = &self.through;
        let proxied = if address.is_https() { https } else { http };
        let agent = self.proxies.of(address).and(proxied.as_ref()).unwrap_or(&self.direct);
        let mut request = agent.get(address.uri());
        if let Some(tag) = tag {
            request = request.header(IF_NONE_MATCH, tag);
        }
        request.call().map_err(|error| failed(error, &address.shown(), self.limits, &self.stopped))
    }
}

/// What an error of the HTTP library means.
pub(crate) fn failed(error: ureq::Error, url: &str, limits: Limits, stopped: &AtomicBool) -> Error {
    let url = url.to_owned();
    if stopped.load(Ordering::SeqCst) {
        return Error::Stopped;
    }
    match error {
        ureq::Error::Timeout(
            ureq::Timeout::PerRead | ureq::Timeout::PerWrite | ureq::Timeout::RecvResponse,
        ) => Error::Stalled { url, after: limits.stall },
        ureq::Error::Io(error) => Error::Transport { url, source: Box::new(error) },
        error => Error::Transport { url, source: Box::new(error) },
    }
}

fn next(address: &Address, headers: &HeaderMap, status: u16) -> Result<Address> {
    let Some(location) = headers.get(LOCATION) else {
        return Err(Error::Status { url: address.shown(), status });
    };
    // Bytes beyond ASCII may be in any encoding: the server knows which.
    let byte = |byte: &u8| match byte.is_ascii() {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    let location: String = location.as_bytes().iter().map(byte).collect();
    let refused = |problem| Error::Redirect { url: address.shown(), target: shown(&location), problem };
    let next = address.join(&location).map_err(|_| refused("it is no http or https address"))?;
    if address.is_https() && !next.is_https() {
        return Err(refused("it is not encrypted, and this is"));
    }
    Ok(next)
}

pub(crate) fn text(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

/// ETag, if it is one that no two versions share.
pub(crate) fn strong_tag(headers: &HeaderMap) -> Option<String> {
    text(headers, &ETAG).filter(|tag| tag.len() >= 2 && tag.starts_with('"') && tag.ends_with('"'))
}

fn agent(settings: &Settings, roots: &RootCerts, proxy: Option<Proxy>) -> Agent {
    let limits = settings.limits;
    let tls = TlsConfig::builder()
        .root_certs(roots.clone())
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    // A resolver with a time limit would start a thread.
    let config = Agent::config_builder()
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        .proxy(proxy)
        .tls_config(tls)
        .user_agent(settings.agent.as_str())
        .accept("*/*")
        .max_response_header_size(64 << 10)
        .max_idle_connections(0)
        .timeout_connect(Some(limits.connect))
        .timeout_recv_response(Some(limits.stall))
        .timeout_per_read(Some(limits.stall))
        .timeout_per_write(Some(limits.stall))
        .build();
    let connector =
        ().chain(ForwardConnector)
            .chain(ConnectProxyConnector::default())
            .chain(TcpConnector::default())
            .chain(RustlsConnector::default());
    Agent::with_parts(config, connector, DefaultResolver::default())
}

fn roots(settings: &Settings) -> Result<Option<Vec<ureq::tls::Certificate<'static>>>> {
    let Some(path) = &settings.bundle else { return Ok(None) };
    let bytes = fs_err::read(path).map_err(Error::Roots)?;
    let certificates: Vec<_> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::NoRoots { path: path.display().to_string() });
    }
    Ok(Some(certificates))
}
