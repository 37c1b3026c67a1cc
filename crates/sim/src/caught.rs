//! A panic of a core is a broken promise like any other: the trace that led to it is kept.

use crate::oracle::Broken;
use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic breaks.
pub const PROMISE: &str = "no-panic";

thread_local! {
    static WHERE: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Panics are told by whoever catches them, and not also on standard error.
pub fn silence() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string);
        WHERE.with(|kept| *kept.borrow_mut() = place);
    }));
}

/// Runs it to its end or to its panic.
pub fn caught(run: impl FnOnce()) -> Option<Broken> {
    let payload = catch_unwind(AssertUnwindSafe(run)).err()?;
    let place = WHERE.with(|kept| kept.borrow_mut().take());
    let place = place.map_or_else(String::new, |place| format!("at {place}: "));
    let text = format!("{place}{}", message(&*payload));
    Some(Broken { promise: PROMISE, text })
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_string());
    text.or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_in_its_own_words() {
        let broken = caught(|| panic!("slot {} is free already", 7)).expect("it panics");
        assert_eq!((broken.promise, &broken.text[..]), (PROMISE, "slot 7 is free already"));
        assert_eq!(caught(|| {}), None);
    }
}
