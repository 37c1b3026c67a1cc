//! A client for single requests.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

/// One request over a connection of its own: status and body.
#[track_caller]
pub fn ask(
    address: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (u16, String) {
    let mut socket = TcpStream::connect(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    socket.set_read_timeout(Some(MOST)).expect("a time that is not zero");
    let mut lines = vec![format!("{method} {path} HTTP/1.1"), "Connection: close".to_owned()];
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        lines.push(format!("Host: {address}"));
    }
    lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    lines.push(format!("Content-Length: {}", body.len()));
    let request = format!("{}\r\n\r\n{body}", lines.join("\r\n"));
    socket.write_all(request.as_bytes()).unwrap_or_else(|e| panic!("{address}: {e}"));
    let (mut answer, mut some) = (Vec::new(), [0; 16 << 10]);
    // The driver does not hang up after an answer.
    while !is_whole(&answer) {
        match socket.read(&mut some).unwrap_or_else(|e| panic!("{address}{path}: {e}")) {
            0 => break,
            length => answer.extend_from_slice(&some[..length]),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body) } else { body.to_owned() };
    (status.unwrap_or_default(), body)
}

/// Source: RFC 9112, section 7.1. What is not whole ends it.
fn unchunked(mut body: &str) -> String {
    let mut whole = String::new();
    while let Some((length, rest)) = body.split_once("\r\n") {
        let chunk = usize::from_str_radix(length, 16).ok().and_then(|length| rest.get(..length));
        let Some(chunk) = chunk.filter(|chunk| !chunk.is_empty()) else { break };
        whole.push_str(chunk);
        body = rest[chunk.len()..].trim_start_matches("\r\n");
    }
    whole
}

/// As long as it says that it is.
fn is_whole(answer: &[u8]) -> bool {
    let answer = String::from_utf8_lossy(answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let length: usize = value.trim().parse().ok()?;
        name.eq_ignore_ascii_case("content-length").then_some(length)
    });
    length.is_some_and(|length| body.len() >= length)
}

/// What is there to be read.
#[track_caller]
pub fn get(address: &str, path: &str) -> String {
    let (status, body) = ask(address, "GET", path, &[], "");
    assert_eq!(status, 200, "{address}{path}: {body}");
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_put_together() {
        assert_eq!(unchunked("3\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"), "abc0123456789");
        assert_eq!(unchunked("5\r\nabc"), "");
    }

    #[test]
    fn an_answer_is_as_long_as_it_says() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert!(is_whole(answer) && !is_whole(&answer[..answer.len() - 1]));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc"));
    }
}
