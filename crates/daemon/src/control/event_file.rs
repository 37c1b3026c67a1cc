//! Events on disk: JSON, one a line, in two files of which the older one goes when the newer one is full. Written by
//! a thread of its own, and not synced: a power cut may cost the last seconds, never more than that.

use crate::control::event_log::{EVENTS_MAX, Noted, Origin};
use gabion_api::v1::Event;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

/// Of one of the two files: as many events as are kept in memory have room in both. Units: bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Lines that wait for the disk; what comes on top is not kept on it.
const WAITING_MAX: usize = 1024;

/// As it stands in the file.
#[derive(Serialize, Deserialize)]
struct Line {
    origin: Origin,
    number: u64,
    time_ms: u64,
    node: u32,
    severity: i32,
    kind: String,
    text: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    volume: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    disk: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    map_index: Option<u64>,
}

impl From<&Noted> for Line {
    fn from(Noted { origin, event }: &Noted) -> Self {
        Self {
            origin: *origin,
            number: event.number,
            time_ms: event.time_ms,
            node: event.node,
            severity: event.severity,
            kind: event.kind.clone(),
            text: event.text.clone(),
            volume: event.volume,
            disk: event.disk,
            map_index: event.map_index,
        }
    }
}

impl From<Line> for Noted {
    fn from(line: Line) -> Self {
        let event = Event {
            number: line.number,
            time_ms: line.time_ms,
            node: line.node,
            severity: line.severity,
            kind: line.kind,
            text: line.text,
            volume: line.volume,
            disk: line.disk,
            map_index: line.map_index,
        };
        Self { origin: line.origin, event }
    }
}

/// Where events go. Dropped: what waits is written first.
pub struct EventFile {
    lines: Option<SyncSender<String>>,
    writer: Option<JoinHandle<()>>,
}

impl EventFile {
    /// With those in the files that are not older. Where nothing can be written, events are in memory only, and a
    /// warning says so. Units: ms since 1970.
    pub fn open(dir: &Path, oldest_ms: u64) -> (Self, VecDeque<Noted>) {
        let [older, newer] = paths(dir);
        let mut events = VecDeque::new();
        for path in [&older, &newer] {
            for noted in read(path).into_iter().filter(|it| it.event.time_ms >= oldest_ms) {
                if events.len() >= EVENTS_MAX {
                    events.pop_front();
                }
                events.push_back(noted);
            }
        }
        let (send, receive) = sync_channel(WAITING_MAX);
        let writer = Writer::open(older, newer).and_then(|writer| {
            let named = std::thread::Builder::new().name("events".to_owned());
            named.spawn(move || writer.run(&receive))
        });
        match writer {
            Ok(writer) => (Self { lines: Some(send), writer: Some(writer) }, events),
            Err(error) => {
                tracing::warn!("events are not kept on disk in {}: {error}", dir.display());
                (Self { lines: None, writer: None }, events)
            }
        }
    }

    /// Never waits.
    pub fn keep(&self, noted: &Noted) {
        let Some(lines) = &self.lines else { return };
        let Ok(line) = serde_json::to_string(&Line::from(noted)) else { return };
        if let Err(TrySendError::Full(_)) = lines.try_send(line) {
            tracing::warn!("the disk is slow: an event is not kept on it");
        }
    }
}

impl Drop for EventFile {
    fn drop(&mut self) {
        self.lines = None;
        if let Some(writer) = self.writer.take() {
            // It panicked: there is nothing to wait for.
            let _ = writer.join();
        }
    }
}

fn paths(dir: &Path) -> [PathBuf; 2] {
    ["events.1.jsonl", "events.jsonl"].map(|name| dir.join(name))
}

/// What is no event is passed over: a line that a power cut tore, or one of another version.
fn read(path: &Path) -> Vec<Noted> {
    let Ok(file) = File::open(path) else { return Vec::new() };
    let lines = BufReader::new(io::Read::take(file, 2 * FILE_BYTES_MAX)).split(b'\n');
    let known = |line: Vec<u8>| serde_json::from_slice::<Line>(&line).ok().map(Noted::from);
    lines.map_while(Result::ok).filter_map(known).collect()
}

struct Writer {
    older: PathBuf,
    newer: PathBuf,
    file: File,
    length: u64,
}

impl Writer {
    fn open(older: PathBuf, newer: PathBuf) -> io::Result<Self> {
        let mut file = File::options().create(true).append(true).open(&newer)?;
        // Whatever was torn ends here.
        file.write_all(b"\n")?;
        let length = file.metadata()?.len();
        Ok(Self { older, newer, file, length })
    }

    fn run(mut self, lines: &Receiver<String>) {
        let mut failing = false;
        while let Ok(line) = lines.recv() {
            match self.write(&line) {
                Ok(()) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    tracing::warn!("events cannot be kept in {}: {error}", self.newer.display());
                }
                Err(_) => {}
            }
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let bytes = u64::try_from(line.len()).unwrap_or(u64::MAX) + 1;
        if self.length + bytes > FILE_BYTES_MAX {
            fs::rename(&self.newer, &self.older)?;
            self.file = File::options().create(true).append(true).open(&self.newer)?;
            self.length = 0;
        }
        // In one piece: a process that is killed leaves whole lines.
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.length += bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(number: u64, time_ms: u64, text: String) -> Noted {
        let event = Event { number, time_ms, text, volume: Some(7), ..Event::default() };
        Noted { origin: Origin::Node, event }
    }

    #[test]
    fn what_is_kept_comes_back_and_what_is_old_or_torn_does_not() {
        let dir = std::env::temp_dir().join(format!("gabion-event-file-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        let (file, found) = EventFile::open(&dir, 0);
        assert!(found.is_empty());
        let all: Vec<Noted> = (1..=3).map(|n| noted(n, n * 100, format!("event {n}"))).collect();
        all.iter().for_each(|noted| file.keep(noted));
        drop(file);
        let newer = &paths(&dir)[1];
        let mut torn = fs::read(newer).expect("read");
        torn.extend_from_slice(b"{\"origin\":\"no");
        fs::write(newer, torn).expect("written");
        let (file, found) = EventFile::open(&dir, 200);
        assert_eq!(found, &all[1..]);
        file.keep(&noted(4, 400, "event 4".to_owned()));
        drop(file);
        let (_, found) = EventFile::open(&dir, 0);
        assert_eq!(found.len(), 4);
        fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn two_files_hold_the_newest_and_never_more() {
        let dir = std::env::temp_dir().join(format!("gabion-event-full-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("made");
        let [older, newer] = paths(&dir);
        let mut writer = Writer::open(older.clone(), newer.clone()).expect("opened");
        let count = 5 * FILE_BYTES_MAX / 4096;
        for number in 1..=count {
            let line = Line::from(&noted(number, number, "x".repeat(4096)));
            writer.write(&serde_json::to_string(&line).expect("JSON")).expect("written");
        }
        for path in [&older, &newer] {
            assert!(fs::metadata(path).expect("there").len() <= FILE_BYTES_MAX);
        }
        let (_, found) = EventFile::open(&dir, 0);
        assert_eq!(found.back().map(|noted| noted.event.number), Some(count));
        let numbers: Vec<u64> = found.iter().map(|noted| noted.event.number).collect();
        assert!(numbers.is_sorted_by(|a, b| a + 1 == *b), "none is missing between");
        fs::remove_dir_all(dir).expect("removed");
    }
}
