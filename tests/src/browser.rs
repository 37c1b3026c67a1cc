//! Chromium without a screen, driven over WebDriver by Debian's `chromedriver`. Source: W3C WebDriver 2.

use crate::http;
use gabion::process;
use gabion_harness::command::Started;
use gabion_harness::fixture::{temp_dir, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// A browser starts, and a page is shown, within this time.
const MOST: Duration = Duration::from_secs(60);

/// Keys that are not letters. Source: WebDriver 2, 17.4.2, keyboard actions.
pub const TAB: char = '\u{e004}';
pub const ENTER: char = '\u{e007}';
pub const ESCAPE: char = '\u{e00c}';
pub const CONTROL: char = '\u{e009}';

pub struct Browser {
    driver: Started,
    port: u16,
    session: String,
    dir: PathBuf,
}

/// How the page is to look.
#[derive(Clone, Copy, Debug)]
pub struct Looks {
    pub width: u32,
    pub height: u32,
    pub dark: bool,
}

impl Browser {
    #[track_caller]
    pub fn start() -> Self {
        let dir = temp_dir("browser");
        let driver = Started::start(Command::new("chromedriver").arg("--port=0"));
        let mut port = None;
        wait("chromedriver listens", MOST, || {
            let said = driver.said();
            let after = said.split_once("successfully on port ").map(|(_, after)| after);
            port = after.and_then(|after| after.split(['.', '\n']).next()?.trim().parse().ok());
            port.is_some()
        });
        let port = port.expect("it was waited for");
        // Chromium has no sandbox for root.
        let options = json!({ "args": [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            format!("--user-data-dir={}", dir.display()),
        ] });
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let made = call(port, "POST", "/session", Some(&wanted));
        let session = made["sessionId"].as_str().expect("a session has an id").to_owned();
        Self { driver, port, session, dir }
    }

    #[track_caller]
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        call(self.port, method, &format!("/session/{}{path}", self.session), body)
    }

    #[track_caller]
    pub fn open(&self, url: &str) {
        self.ask("POST", "/url", Some(&json!({ "url": url })));
    }

    /// The value of an expression of the page's script.
    #[track_caller]
    pub fn value(&self, expression: &str) -> Value {
        let script = format!("return ({expression});");
        self.ask("POST", "/execute/sync", Some(&json!({ "script": script, "args": [] })))
    }

    #[track_caller]
    pub fn text(&self, expression: &str) -> String {
        self.value(expression).as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    pub fn wait(&self, what: &str, most: Duration, expression: &str) {
        wait(what, most, || self.value(expression) == Value::Bool(true));
    }

    /// Pressed and let go one after the other, as a person does.
    #[track_caller]
    pub fn press(&self, keys: &str) {
        let key = |key: char| {
            let key = key.to_string();
            [json!({ "type": "keyDown", "value": key }), json!({ "type": "keyUp", "value": key })]
        };
        self.act(keys.chars().flat_map(key).collect());
    }

    /// All of the field that has the focus.
    #[track_caller]
    pub fn select_all(&self) {
        let (down, up) = ("keyDown", "keyUp");
        let step = |kind: &str, key: &str| json!({ "type": kind, "value": key });
        let control = CONTROL.to_string();
        let keys = [(down, &*control), (down, "a"), (up, "a"), (up, &*control)];
        self.act(keys.map(|(kind, key)| step(kind, key)).to_vec());
    }

    #[track_caller]
    fn act(&self, actions: Vec<Value>) {
        let keyboard = json!({ "type": "key", "id": "keyboard", "actions": actions });
        self.ask("POST", "/actions", Some(&json!({ "actions": [keyboard] })));
    }

    /// Goes on with Tab until the focus is there. Fails the test when it never comes there.
    #[track_caller]
    pub fn tab_to(&self, what: &str) {
        let name = "(document.activeElement.getAttribute('aria-label') ?? \
                    document.activeElement.textContent).trim()";
        let mut seen = Vec::new();
        for _ in 0..60 {
            self.press(&TAB.to_string());
            let focused = self.text(name);
            if focused == what {
                return;
            }
            seen.push(focused.chars().take(30).collect::<String>());
        }
        panic!("Tab never came to {what}: {seen:?}");
    }

    #[track_caller]
    fn devtools(&self, command: &str, with: &Value) -> Value {
        let body = json!({ "cmd": command, "params": with });
        self.ask("POST", "/goog/cdp/execute", Some(&body))
    }

    #[track_caller]
    pub fn look(&self, looks: Looks) {
        let Looks { width, height, dark } = looks;
        let screen =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", &screen);
        let scheme = if dark { "dark" } else { "light" };
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.devtools("Emulation.setEmulatedMedia", &json!({ "features": [feature] }));
    }

    /// The whole page, also what is below the edge, as a PNG.
    #[track_caller]
    pub fn screenshot(&self, to: &Path) {
        let shot = json!({ "format": "png", "captureBeyondViewport": true });
        let data = self.devtools("Page.captureScreenshot", &shot);
        let data = base64(data["data"].as_str().expect("a picture"));
        std::fs::write(to, data).unwrap_or_else(|error| panic!("{}: {error}", to.display()));
    }

    /// What the page complained of since the last time.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let log = self.ask("POST", "/se/log", Some(&json!({ "type": "browser" })));
        let entries = log.as_array().cloned().unwrap_or_default().into_iter();
        let severe = entries.filter(|entry| entry["level"] == "SEVERE");
        severe.map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The driver leaves its browser behind, unless the session is ended first.
        if let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.port)) {
            let end =
                format!("DELETE /session/{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", self.session);
            let asked =
                socket.set_read_timeout(Some(MOST)).and_then(|()| socket.write_all(end.as_bytes()));
            drop(asked.and_then(|()| socket.read(&mut [0; 512])));
        }
        let driver = i32::try_from(self.driver.id()).ok().and_then(Pid::from_raw);
        if let Some(driver) = driver
            && kill_process(driver, Signal::TERM).is_ok()
        {
            process::wait_for(MOST, || !self.driver.running());
        }
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

/// One command to the driver; its value.
#[track_caller]
fn call(port: u16, method: &str, path: &str, body: Option<&Value>) -> Value {
    let body = body.map_or(String::new(), Value::to_string);
    let kind = [("Content-Type", "application/json")];
    let (status, answer) = http::ask(&format!("127.0.0.1:{port}"), method, path, &kind, &body);
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    assert_eq!(status, 200, "{method} {path} {body}: {answer}");
    answer["value"].clone()
}

/// Source: RFC 4648, section 4.
fn base64(text: &str) -> Vec<u8> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(u32::from(byte - b'A')),
        b'a'..=b'z' => Some(u32::from(byte - b'a') + 26),
        b'0'..=b'9' => Some(u32::from(byte - b'0') + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let (mut bits, mut held, mut bytes) = (0u32, 0, Vec::with_capacity(text.len() * 3 / 4));
    for digit in text.bytes().filter_map(digit) {
        bits = (bits << 6) | digit;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.extend(((bits >> held) & 0xff).to_le_bytes().first());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read() {
        assert_eq!(base64("Z2FiaW9u"), b"gabion");
        assert_eq!(base64("Z2FiaW8="), b"gabio");
    }
}
