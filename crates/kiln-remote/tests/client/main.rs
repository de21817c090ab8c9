//! A client against servers of these tests on this machine's loopback.

mod server;

mod limits;
mod proxies;
mod requests;
mod tls;
