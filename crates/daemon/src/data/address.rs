//! Where peers are. Names are looked up on a thread of their own: that may take seconds.

use gabion_engine::Waker;
use gabion_node::LinkId;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

/// Names that wait to be looked up. Full: the dial fails, and the node dials again.
const LOOKUPS_MAX: usize = 64;

/// The answer to a lookup; none: nobody knows that name now.
pub(crate) type Resolved = (LinkId, Option<SocketAddr>);

pub(crate) struct Resolver {
    asked: Option<SyncSender<(LinkId, String)>>,
    answered: Receiver<Resolved>,
    answers: SyncSender<Resolved>,
    waker: Waker,
}

pub(crate) enum Lookup {
    Known(SocketAddr),
    /// The answer comes by `next`.
    Asked,
    Failed,
}

impl Resolver {
    pub(crate) fn new(waker: Waker) -> Self {
        let (answers, answered) = sync_channel(LOOKUPS_MAX);
        Self { asked: None, answered, answers, waker }
    }

    pub(crate) fn look_up(&mut self, link: LinkId, address: &str) -> Lookup {
        if let Ok(known) = address.parse() {
            return Lookup::Known(known);
        }
        let asked = match &self.asked {
            Some(asked) => asked,
            None => match self.start() {
                Some(asked) => self.asked.insert(asked),
                None => return Lookup::Failed,
            },
        };
        match asked.try_send((link, address.to_owned())) {
            Ok(()) => Lookup::Asked,
            Err(_) => Lookup::Failed,
        }
    }

    pub(crate) fn next(&mut self) -> Option<Resolved> {
        self.answered.try_recv().ok()
    }

    /// The thread ends with its queue.
    fn start(&self) -> Option<SyncSender<(LinkId, String)>> {
        let (sender, receiver) = sync_channel::<(LinkId, String)>(LOOKUPS_MAX);
        let (answers, waker) = (self.answers.clone(), self.waker.clone());
        let run = move || {
            while let Ok((link, name)) = receiver.recv() {
                let found = name.to_socket_addrs().ok().and_then(|mut all| all.next());
                if answers.send((link, found)).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        std::thread::Builder::new().name("gabion-names".into()).spawn(run).ok()?;
        Some(sender)
    }
}
