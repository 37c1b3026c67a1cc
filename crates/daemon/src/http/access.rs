//! Who may do what over HTTP. A page of somebody else that a person's browser shows must not be able to
//! read or to change anything here; neither must who does not know the token, where one is set.

use axum::http::{HeaderMap, Method, StatusCode, header};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::net::IpAddr;

/// A change carries it. Another site's page cannot send it without asking first, which is never allowed.
pub const CHANGE_HEADER: &str = "gabion-change";
/// Shorter tokens are refused: nobody counts the tries.
pub const TOKEN_CHARS_MIN: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// May look.
    Reader,
    /// May look and change.
    Operator,
}

impl Role {
    pub fn name(self) -> &'static str {
        match self {
            Self::Reader => "reader",
            Self::Operator => "operator",
        }
    }
}

/// The node's configuration, `[http]`. Without a token everybody who reaches the port is an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tokens {
    pub token: Option<String>,
    pub read_token: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The request comes from a page of another site, or has come by a name that is not this node's.
    Foreign,
    /// A change without `CHANGE_HEADER`.
    NoChangeHeader,
    /// No token, or none that is known.
    Unknown,
    /// The token is for reading only.
    ReadOnly,
}

impl Denied {
    pub fn status(self) -> StatusCode {
        match self {
            Self::Foreign | Self::NoChangeHeader | Self::ReadOnly => StatusCode::FORBIDDEN,
            Self::Unknown => StatusCode::UNAUTHORIZED,
        }
    }

    pub fn json(self) -> Value {
        let (code, what, next) = match self {
            Self::Foreign => (
                "foreign",
                "the request comes from another site's page, or by a name that is not this node's",
                "open the console by the node's IP address, or set `token` in [http]",
            ),
            Self::NoChangeHeader => (
                "no_change_header",
                "a change has to carry the header gabion-change",
                "send `gabion-change: 1`",
            ),
            Self::Unknown => (
                "unknown",
                "no token was given, or one that this node does not know",
                "send `authorization: Bearer TOKEN`, with `token` or `read_token` of [http]",
            ),
            Self::ReadOnly => {
                ("read_only", "this token may read only", "use the other token to change something")
            }
        };
        json!({ "error": { "code": code, "what": what, "next": next, "retry": false } })
    }
}

/// `own_host`: the name by which others are told to find this node's port.
pub fn judge(
    tokens: &Tokens,
    own_host: &str,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Role, Denied> {
    if is_foreign(headers) || (tokens.token.is_none() && !is_own_host(headers, own_host)) {
        return Err(Denied::Foreign);
    }
    let role = role(tokens, headers)?;
    let reads = method == Method::GET || method == Method::HEAD;
    match role {
        _ if reads => Ok(role),
        Role::Reader => Err(Denied::ReadOnly),
        Role::Operator if headers.contains_key(CHANGE_HEADER) => Ok(role),
        Role::Operator => Err(Denied::NoChangeHeader),
    }
}

fn role(tokens: &Tokens, headers: &HeaderMap) -> Result<Role, Denied> {
    let Some(token) = &tokens.token else { return Ok(Role::Operator) };
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(|value| value.strip_prefix("Bearer ")).ok_or(Denied::Unknown)?;
    // Digests are compared: how long that takes says nothing of the token.
    let digest = |text: &str| Sha256::digest(text.as_bytes());
    if digest(given) == digest(token) {
        return Ok(Role::Operator);
    }
    match &tokens.read_token {
        Some(read) if digest(given) == digest(read) => Ok(Role::Reader),
        Some(_) | None => Err(Denied::Unknown),
    }
}

/// A browser says where the page that asks comes from.
fn is_foreign(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if text("sec-fetch-site").is_some_and(|site| site != "same-origin" && site != "none") {
        return true;
    }
    let Some(origin) = text("origin") else { return false };
    let authority = origin.split_once("://").map(|(_, authority)| authority);
    authority.is_none() || authority != text("host")
}

/// By an address, by `localhost`, or by the name that the node has: a name of somebody else's that leads
/// here would make their page one of ours.
fn is_own_host(headers: &HeaderMap, own_host: &str) -> bool {
    let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let name = host_name(host);
    name == "localhost" || name.parse::<IpAddr>().is_ok() || name == host_name(own_host)
}

/// Without the port, and without the brackets of an IPv6 address.
fn host_name(host: &str) -> &str {
    if let Some(inner) = host.strip_prefix('[') {
        return inner.split_once(']').map_or("", |(name, _)| name);
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::{HeaderName, HeaderValue};

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn tokens() -> Tokens {
        let token = |text: &str| Some(text.repeat(16));
        Tokens { token: token("f"), read_token: token("r") }
    }

    fn asked(tokens: &Tokens, method: &Method, pairs: &[(&str, &str)]) -> Result<Role, Denied> {
        judge(tokens, "box.example:7600", method, &headers(pairs))
    }

    // rule: http/no-foreign-page
    #[test]
    fn a_foreign_page_neither_reads_nor_changes() {
        let open = Tokens::default();
        let own = ("host", "127.0.0.1:7601");
        let change = (CHANGE_HEADER, "1");
        let foreign = [
            vec![own, change, ("origin", "http://evil.example")],
            vec![own, change, ("origin", "http://127.0.0.1:8000")],
            vec![own, change, ("origin", "null")],
            vec![own, change, ("sec-fetch-site", "cross-site")],
            vec![own, change, ("sec-fetch-site", "same-site")],
            vec![change, ("host", "evil.example:7601"), ("origin", "http://evil.example:7601")],
            vec![change],
        ];
        for pairs in foreign {
            for method in [Method::GET, Method::POST] {
                assert_eq!(asked(&open, &method, &pairs), Err(Denied::Foreign), "{pairs:?}");
            }
        }
        assert_eq!(asked(&open, &Method::POST, &[own]), Err(Denied::NoChangeHeader));
        let page = [own, change, ("origin", "http://127.0.0.1:7601")];
        assert_eq!(asked(&open, &Method::POST, &page), Ok(Role::Operator));
        let own_names = ["localhost:7601", "[::1]:7601", "10.0.0.1", "box.example:7600"];
        for host in own_names {
            let pairs = [("host", host), change];
            assert_eq!(asked(&open, &Method::DELETE, &pairs), Ok(Role::Operator), "{host}");
        }
    }

    // rule: http/token
    #[test]
    fn a_token_says_who_may_change() {
        let host = ("host", "console.example");
        let full = format!("Bearer {}", "f".repeat(16));
        let read = format!("Bearer {}", "r".repeat(16));
        let (full, read) = (("authorization", full.as_str()), ("authorization", read.as_str()));
        let change = (CHANGE_HEADER, "1");
        let tokens = tokens();
        assert_eq!(asked(&tokens, &Method::GET, &[host]), Err(Denied::Unknown));
        assert_eq!(asked(&tokens, &Method::POST, &[host, change]), Err(Denied::Unknown));
        let wrong = ("authorization", "Bearer ffffffffffffffff0");
        assert_eq!(asked(&tokens, &Method::GET, &[host, wrong]), Err(Denied::Unknown));
        assert_eq!(asked(&tokens, &Method::GET, &[host, read]), Ok(Role::Reader));
        assert_eq!(asked(&tokens, &Method::PUT, &[host, read, change]), Err(Denied::ReadOnly));
        assert_eq!(asked(&tokens, &Method::PUT, &[host, full, change]), Ok(Role::Operator));
        assert_eq!(asked(&tokens, &Method::PUT, &[host, full]), Err(Denied::NoChangeHeader));
        let foreign = [host, full, change, ("origin", "https://evil.example")];
        assert_eq!(asked(&tokens, &Method::PUT, &foreign), Err(Denied::Foreign));
    }
}
