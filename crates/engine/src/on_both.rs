//! Tests that run on both drivers.

use crate::setup::IoMode;
use std::cell::Cell;

thread_local! {
    static MODE: Cell<IoMode> = const { Cell::new(IoMode::Uring) };
}

/// What the test that runs on this thread is to make its engines with.
pub(crate) fn mode() -> IoMode {
    MODE.get()
}

pub(crate) fn with(mode: IoMode, test: fn()) {
    MODE.set(mode);
    test();
}

/// Each of these functions is a test on the ring and a test on the portable driver.
macro_rules! on_both {
    ($($name:ident),* $(,)?) => {
        mod uring {
            $(#[test]
            fn $name() {
                crate::on_both::with(crate::setup::IoMode::Uring, super::$name);
            })*
        }
        mod portable {
            $(#[test]
            fn $name() {
                crate::on_both::with(crate::setup::IoMode::Portable, super::$name);
            })*
        }
    };
}
pub(crate) use on_both;
