//! Signals as values, from one thread of `signal-hook`'s.

use std::{io, thread};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1},
    iterator::Signals,
};
use tokio::sync::mpsc;

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, SIGINT: end cleanly.
    Stop,
    /// SIGHUP: read configuration and keys again.
    Reload,
    /// SIGUSR1: log what is going on.
    Report,
}

/// Signals that wait to be looked at; more of the same kind say nothing new.
const QUEUE: usize = 8;

/// Signals from now on. A second request to stop ends the process at once, as an operator who asks
/// twice expects; everything durable is so at any moment.
pub fn listen() -> io::Result<mpsc::Receiver<Signal>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1])?;
    let (tell, told) = mpsc::channel(QUEUE);
    thread::Builder::new().name("signals".into()).spawn(move || {
        let mut stopping = false;
        for signal in signals.forever() {
            let signal = match signal {
                SIGHUP => Signal::Reload,
                SIGUSR1 => Signal::Report,
                number if stopping => {
                    let _ = signal_hook::low_level::emulate_default_handler(number);
                    return;
                }
                _ => {
                    stopping = true;
                    Signal::Stop
                }
            };
            if matches!(tell.try_send(signal), Err(mpsc::error::TrySendError::Closed(_))) {
                return;
            }
        }
    })?;
    Ok(told)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn signals_arrive_as_values() {
        let mut signals = listen().unwrap();
        for (number, signal) in
            [(SIGHUP, Signal::Reload), (SIGUSR1, Signal::Report), (SIGTERM, Signal::Stop)]
        {
            signal_hook::low_level::raise(number).unwrap();
            assert_eq!(signals.recv().await, Some(signal));
        }
    }
}
