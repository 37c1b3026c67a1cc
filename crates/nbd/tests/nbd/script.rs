//! Scripts in `golden/*.txt`: what a client sends and the node answers, and below each line what
//! comes out. `UPDATE_GOLDEN=1` writes what comes out anew.
//!
//! Lines: `client <hex>` or `client <count> x <hex>`, `listed <name>…`, `export <name> <bytes>`,
//! `no-export`, `done <tag> [<error>|read <hex byte> <count>|status <bytes>:data|hole…]`,
//! `shutdown`.

use bytes::Bytes;
use gabion_nbd::{Connection, Effect, Export, Input, NbdLimits, Tag, Want};
use gabion_types::{GuestData, GuestOp, GuestResult, IoError, MappedExtent};
use std::collections::VecDeque;
use std::fmt::Write as _;

struct Script {
    connection: Connection,
    stream: VecDeque<u8>,
    text: String,
}

impl Script {
    fn line(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        let input = match verb {
            "client" => {
                self.stream.extend(match words.as_slice() {
                    [count, "x", byte] => vec![hex(byte); count.parse().unwrap()],
                    bytes => bytes.iter().map(|byte| hex(byte)).collect(),
                });
                return self.feed();
            }
            "listed" => Input::Listed { exports: words.iter().map(|w| w.to_string()).collect() },
            "export" => Input::Export(Some(Export {
                name: words[0].into(),
                size_bytes: words[1].parse().unwrap(),
                read_only: false,
            })),
            "no-export" => Input::Export(None),
            "done" => {
                let tag = Tag(words[0].parse().unwrap());
                Input::Done { tag, result: result(&words[1..]) }
            }
            "shutdown" => Input::Shutdown,
            other => panic!("no verb {other}"),
        };
        self.connection.handle(input);
        self.effects();
        self.feed();
    }

    fn feed(&mut self) {
        while let Want::Exactly(wanted) = self.connection.want() {
            if self.stream.len() < wanted {
                break;
            }
            let bytes: Bytes = self.stream.drain(..wanted).collect();
            self.connection.handle(Input::Received(bytes));
            self.effects();
        }
        writeln!(self.text, "    want {:?}", self.connection.want()).unwrap();
    }

    fn effects(&mut self) {
        while let Some(effect) = self.connection.next_effect() {
            let shown = match effect {
                Effect::Send { pieces } => {
                    let pieces: Vec<_> = pieces.iter().map(|piece| dump(piece)).collect();
                    format!("send {}", pieces.join(" | "))
                }
                Effect::Request { tag, op } => format!("request {} {}", tag.0, show(&op)),
                Effect::List => "list".into(),
                Effect::Describe { name } => format!("describe {name}"),
                Effect::Open { name } => format!("open {name}"),
                Effect::Close => "close".into(),
            };
            writeln!(self.text, "    {shown}").unwrap();
        }
    }
}

fn hex(byte: &str) -> u8 {
    u8::from_str_radix(byte, 16).unwrap()
}

fn result(words: &[&str]) -> GuestResult {
    match words {
        [] => Ok(GuestData::Done),
        ["read", byte, count] => {
            Ok(GuestData::Read(vec![hex(byte); count.parse().unwrap()].into()))
        }
        ["status", extents @ ..] => {
            let extent = |word: &&str| {
                let (length, kind) = word.split_once(':').unwrap();
                MappedExtent { length: length.parse().unwrap(), data: kind == "data" }
            };
            Ok(GuestData::Status(extents.iter().map(extent).collect()))
        }
        ["NoSpace"] => Err(IoError::NoSpace),
        ["Lost"] => Err(IoError::Lost),
        other => panic!("no result {other:?}"),
    }
}

/// Runs of equal bytes are shortened.
fn dump(bytes: &[u8]) -> String {
    let mut words = Vec::new();
    for run in bytes.chunk_by(|a, b| a == b) {
        if run.len() > 16 {
            words.push(format!("{}x{:02x}", run.len(), run[0]));
        } else {
            words.extend(run.iter().map(|byte| format!("{byte:02x}")));
        }
    }
    words.join(" ")
}

fn show(op: &GuestOp) -> String {
    let at = op.range().map(|range| format!("{}+{}", range.offset(), range.length()));
    let at = at.unwrap_or_default();
    match op {
        GuestOp::Read { .. } => format!("read {at}"),
        GuestOp::Write { data, fua, .. } => format!("write {at} fua {fua}: {}", dump(data)),
        GuestOp::Zero { fua, .. } => format!("zero {at} fua {fua}"),
        GuestOp::Trim { fua, .. } => format!("trim {at} fua {fua}"),
        GuestOp::Flush => "flush".into(),
        GuestOp::Status { .. } => format!("status {at}"),
        GuestOp::Room { .. } => format!("room {at}"),
    }
}

#[test]
fn clients_are_served_as_in_the_scripts() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/golden");
    let mut paths: Vec<_> =
        std::fs::read_dir(golden).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    for path in paths {
        let before = std::fs::read_to_string(&path).unwrap();
        let limits =
            NbdLimits { part_bytes: 8192, in_flight_max: 16, bytes_in_flight_max: 1 << 20 };
        let connection = Connection::new(limits);
        let mut script = Script { connection, stream: VecDeque::new(), text: String::new() };
        for line in before.lines().filter(|line| !line.starts_with("    ")) {
            writeln!(script.text, "{line}").unwrap();
            if line == "connect" {
                script.effects();
                script.feed();
            } else if !line.is_empty() && !line.starts_with('#') {
                script.line(line);
            }
        }
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &script.text).unwrap();
            continue;
        }
        assert_eq!(before, script.text, "{}: UPDATE_GOLDEN=1 writes it anew", path.display());
    }
}
