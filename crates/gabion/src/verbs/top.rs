//! `gabion top`: asked again and again, and drawn; with `--json` a line each time.

use crate::failure::{Exit, Failure};
use crate::remote::Remote;
use crate::top::Top;
use crate::top::draw::draw;
use crate::up::stop_signals;
use gabion_api::v1;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::io::{IsTerminal, Write, stdout};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

/// A key or an answer is heard after this at the latest.
const HEARD_AFTER: Duration = Duration::from_millis(50);
const EVERY_LEAST: Duration = Duration::from_millis(100);
/// Volumes that a page key scrolls by.
const PAGE: isize = 10;

pub fn run(remote: Remote, every: Duration, as_json: bool) -> Result<(), Failure> {
    let every = every.max(EVERY_LEAST);
    if as_json {
        return lines(&remote, every);
    }
    if !stdout().is_terminal() {
        return Err(Failure::new(
            Exit::Refused,
            "top draws on a terminal, and this is none".to_owned(),
            "--json prints a line each second; `gabion status` says it once",
        ));
    }
    let looks = look(remote, every);
    end_by_signal()?;
    let mut terminal = ratatui::try_init()
        .map_err(|e| Failure::failed(format!("cannot draw on this terminal: {e}"), ""))?;
    let ended = show(&mut terminal, &looks);
    ratatui::restore();
    ended.map_err(|e| Failure::failed(format!("the terminal is gone: {e}"), ""))
}

/// From a thread of its own: where the terminal is gone, the library that reads keys never comes back
/// (crossterm 0.29 takes the end of its input for nothing read yet).
fn end_by_signal() -> Result<(), Failure> {
    let stop = stop_signals()?;
    std::thread::spawn(move || {
        if stop.recv().is_ok() {
            ratatui::restore();
            std::process::exit(0);
        }
    });
    Ok(())
}

/// Until whoever reads it is gone. The first look has nothing to be compared with, and is not told.
fn lines(remote: &Remote, every: Duration) -> Result<(), Failure> {
    let mut top = Top::default();
    top.told(remote.status()?, Instant::now());
    loop {
        std::thread::sleep(every);
        match remote.status() {
            Ok(status) => top.told(status, Instant::now()),
            Err(failure) => {
                eprintln!("{failure}");
                continue;
            }
        }
        let line = top.json().unwrap_or_default();
        if writeln!(stdout(), "{line}").and_then(|()| stdout().flush()).is_err() {
            return Ok(());
        }
    }
}

type Looked = (Instant, Result<v1::StatusResponse, String>);

/// Asked by a thread of its own: keys are heard also while a node does not answer.
fn look(remote: Remote, every: Duration) -> Receiver<Looked> {
    let (send, receive) = sync_channel(1);
    std::thread::spawn(move || {
        loop {
            let told = remote.status().map_err(|failure| failure.to_string());
            if send.send((Instant::now(), told)).is_err() {
                return;
            }
            std::thread::sleep(every);
        }
    });
    receive
}

fn show(terminal: &mut DefaultTerminal, looks: &Receiver<Looked>) -> std::io::Result<()> {
    let mut top = Top::default();
    loop {
        terminal.draw(|frame| draw(frame, &top))?;
        // Drawn anew only when there is something new.
        loop {
            if let Ok((now, told)) = looks.try_recv() {
                match told {
                    Ok(status) => top.told(status, now),
                    Err(why) => top.failed(why),
                }
                break;
            }
            if event::poll(HEARD_AFTER)? {
                let event = event::read()?;
                if let Event::Key(key) = event
                    && ends(&mut top, key)
                {
                    return Ok(());
                }
                break;
            }
        }
    }
}

/// What a key does; true: it ends.
fn ends(top: &mut Top, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return false;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    #[allow(clippy::wildcard_enum_match_arm)] // All other keys do nothing.
    match key.code {
        KeyCode::Char('c') if control => return true,
        KeyCode::Char('q') | KeyCode::Esc => return true,
        KeyCode::Char('s') => top.turn_order(),
        KeyCode::Up | KeyCode::Char('k') => top.scroll(-1),
        KeyCode::Down | KeyCode::Char('j') => top.scroll(1),
        KeyCode::PageUp => top.scroll(-PAGE),
        KeyCode::PageDown => top.scroll(PAGE),
        _ => {}
    }
    false
}
