//! The address of a backend. Promises: `http` or `https`, a host, nothing that is never sent or that must not be in it. No message and
//! no `Debug` shows more than scheme, host and path: a query may hold a secret, and so may what was meant to be something else.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ureq::http::Uri;
use ureq::http::uri::Scheme;

use crate::text::escape;

/// Longest URL taken, in bytes: servers take more, nobody writes more by hand.
const URL_MAX: usize = 2048;

/// A URL that has been checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Url(Uri);

impl Url {
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("cannot be empty: write an address such as \"https://backend.example\"".into());
        }
        if text.len() > URL_MAX {
            return Err(format!("has at most {URL_MAX} bytes, this has {}", text.len()));
        }
        if text.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err("must not contain blanks or control characters: in a path a blank is written as %20".into());
        }
        let rest = after_scheme(text)?;
        let authority = authority(rest);
        if authority.contains('@') {
            return Err(
                "must not contain a user or a password: write what the backend wants to see into a file of its own and name that as \
                        `api_key_file`"
                    .into(),
            );
        }
        if rest.contains('#') {
            return Err("must not have a fragment, the part from `#` on: it is never sent".into());
        }
        if !text.is_ascii() {
            return Err("must be ASCII: write a host name in its xn-- form, and other characters of a path percent-encoded".into());
        }
        check_authority(authority)?;
        let uri: Uri = text.parse().map_err(|error| format!("is not a URL: {error}"))?;
        Ok(Self(uri))
    }

    pub fn is_https(&self) -> bool {
        self.0.scheme() == Some(&Scheme::HTTPS)
    }

    /// Scheme, host and port, as far as it has one.
    pub fn origin(&self) -> String {
        let authority = self.0.authority().map_or("", |authority| authority.as_str());
        format!("{}://{authority}", self.0.scheme_str().unwrap_or_default())
    }

    /// Without the brackets of an IPv6 address.
    pub fn host(&self) -> &str {
        bare(self.0.host().unwrap_or_default())
    }

    pub fn path(&self) -> &str {
        self.0.path()
    }

    pub fn has_query(&self) -> bool {
        self.0.query().is_some()
    }
}

/// The whole of it.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.path())?;
        f.write_str(if self.has_query() { "?***" } else { "" })
    }
}

fn after_scheme(text: &str) -> Result<&str, String> {
    // "://" further back belongs to a query, or to nothing that is a URL
    let Some((scheme, rest)) = text.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?', '#', '@'])) else {
        let (scheme, rest) = without_colon_or_slash(text).unwrap_or(("https", text));
        let host = authority(rest);
        let meant = if host.is_ascii() && check_authority(host).is_ok() { format!("{host}/…") } else { "backend.example".into() };
        return Err(format!("has no scheme: write \"{scheme}://{meant}\""));
    };
    if !["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known)) {
        return Err(format!("must begin with \"https://\" or \"http://\", not \"{}://\"", escape(scheme)));
    }
    Ok(rest)
}

/// The scheme and the rest of what was meant by "https//" or "https:/".
fn without_colon_or_slash(text: &str) -> Option<(&str, &str)> {
    let (scheme, rest) = ["https", "http"].iter().find_map(|scheme| Some((*scheme, text.strip_prefix(scheme)?)))?;
    Some((scheme, rest.strip_prefix("//").or_else(|| rest.strip_prefix(":/"))?))
}

/// What stands before the path, the query and the fragment.
fn authority(rest: &str) -> &str {
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

/// A host, and a port or none. Nothing is quoted that could be a part of a password.
fn check_authority(authority: &str) -> Result<(), String> {
    let (host, port) = match authority.rfind(']') {
        Some(end) => authority.split_at_checked(end + 1).unwrap_or((authority, "")),
        None => authority.split_at_checked(authority.find(':').unwrap_or(authority.len())).unwrap_or((authority, "")),
    };
    if host.is_empty() {
        return Err("has no host: write an address such as \"https://backend.example\"".into());
    }
    let name = |host: &str| host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    if !name(host) && (bare(host) == host || bare(host).parse::<Ipv6Addr>().is_err()) {
        return Err("has a wrong host: it must be a name, an IPv4 address, or an IPv6 address in brackets".into());
    }
    let good = |digits: &str| digits.parse::<u16>().is_ok_and(|port| port != 0) && digits.bytes().all(|b| b.is_ascii_digit());
    if !port.is_empty() && !port.strip_prefix(':').is_some_and(good) {
        return Err("has a wrong port: it must be a whole number from 1 to 65535".into());
    }
    Ok(())
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

/// Whether what is sent to `host`, a name or an address, stays on this machine.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
