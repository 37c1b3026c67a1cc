//! What the service manager hears of this process: that it runs, how it is, that it is not stuck, and that it stops.
//!
//! Source: sd_notify(3). Lines `NAME=value` in a datagram to `$NOTIFY_SOCKET`; without that nothing is said.

use crate::control::hub::Hub;
use crate::data::Published;
use crate::http;
use std::convert::Infallible;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// While the node starts it asks for so much more time, again and again.
const START_MOST: Duration = Duration::from_secs(60);
const ASK_EVERY: Duration = Duration::from_secs(20);
/// How often it is looked how the node is.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// So many times within the manager's patience it hears that the data plane turns.
const BEATS: u32 = 4;

pub struct Service {
    /// None: no service manager listens.
    socket: Option<UnixDatagram>,
    /// How often the node shows that it is not stuck.
    beat: Duration,
}

impl Service {
    /// As the process that started this one says.
    pub fn from_env() -> Self {
        let text = |name| std::env::var(name).ok();
        let meant = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let watchdog = text("WATCHDOG_USEC").filter(|_| meant);
        let patience = watchdog.and_then(|us| us.parse().ok()).map(Duration::from_micros);
        Self::new(text("NOTIFY_SOCKET").as_deref(), patience)
    }

    fn new(address: Option<&str>, patience: Option<Duration>) -> Self {
        let socket = address.and_then(|address| {
            let connected = connect(address);
            if let Err(error) = &connected {
                tracing::warn!(address, %error, "the service manager cannot be told how it goes");
            }
            connected.ok()
        });
        let beat = patience.map_or(LOOK_EVERY, |most| LOOK_EVERY.min(most / BEATS));
        Self { socket, beat }
    }

    /// A word that finds no room is lost, and the next one says the same.
    fn say(&self, words: &str) {
        if let Some(socket) = &self.socket {
            let _lost = socket.send(words.as_bytes());
        }
    }

    /// Until it is dropped: disks and log may take long to recover.
    pub async fn tell_starting(&self) -> Infallible {
        loop {
            let most = START_MOST.as_micros();
            self.say(&format!("STATUS=starting\nEXTEND_TIMEOUT_USEC={most}"));
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Until the data plane ends. It has to take an input and to publish before the manager hears that
    /// the node is not stuck.
    pub async fn tell_running(&self, hub: &Hub) {
        self.say("READY=1");
        if self.socket.is_none() {
            return;
        }
        let mut state = hub.subscribe();
        loop {
            state.mark_unchanged();
            if hub.tell_time().await.is_err() || state.changed().await.is_err() {
                return;
            }
            self.say(&format!("WATCHDOG=1\nSTATUS={}", status(&state)));
            tokio::time::sleep(self.beat).await;
        }
    }

    pub fn tell_stopping(&self) {
        self.say("STOPPING=1\nSTATUS=hands over and leaves");
    }
}

/// One line for an operator.
fn status(state: &watch::Receiver<Arc<Published>>) -> String {
    if let Some(why) = http::missing(state) {
        return format!("not ready: {why}");
    }
    let stats = &state.borrow().stats;
    format!("serves; owns {} volumes, has {} guests", stats.volumes.len(), stats.guests)
}

fn connect(address: &str) -> std::io::Result<UnixDatagram> {
    let address = match address.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A manager's end, under a name of its own.
    fn manager(name: &str) -> (UnixDatagram, String) {
        let name = format!("gabion-service-{name}-{}", std::process::id());
        let at = SocketAddr::from_abstract_name(&name).unwrap();
        (UnixDatagram::bind_addr(&at).unwrap(), format!("@{name}"))
    }

    fn heard(manager: &UnixDatagram) -> String {
        let mut bytes = [0; 512];
        let length = manager.recv(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    }

    #[test]
    fn a_manager_hears_each_word() {
        let (manager, address) = manager("words");
        let service = Service::new(Some(&address), Some(Duration::from_secs(4)));
        assert_eq!(service.beat, Duration::from_secs(1));
        service.say("READY=1");
        service.tell_stopping();
        assert_eq!(heard(&manager), "READY=1");
        assert_eq!(heard(&manager), "STOPPING=1\nSTATUS=hands over and leaves");
    }

    #[test]
    fn a_manager_that_does_not_listen_holds_nobody_up() {
        let (manager, address) = manager("deaf");
        let service = Service::new(Some(&address), None);
        assert_eq!(service.beat, LOOK_EVERY);
        (0..10_000).for_each(|_| service.say("WATCHDOG=1"));
        assert_eq!(heard(&manager), "WATCHDOG=1");
        drop(manager);
        service.say("WATCHDOG=1");
        Service::new(Some(&address), None).say("READY=1");
        Service::new(None, None).say("READY=1");
    }
}
