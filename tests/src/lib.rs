//! Harness of the end-to-end suites: real Dovecots, our daemons as children, an oracle that compares
//! two servers, and a workload. Nothing here is a mock, and nothing waits by sleeping a fixed
//! time.

pub mod browser;
pub mod check;
pub mod cluster;
pub mod corpus;
pub mod cyrus;
pub mod daemon;
pub mod debootstrap;
pub mod dovecot;
pub mod dovecot24;
pub mod faults;
pub mod files;
pub mod gate;
pub mod hostile;
pub mod imap;
pub mod lab;
pub mod lmtp;
pub mod machine;
pub mod managesieve;
pub mod memory;
pub mod oracle;
pub mod peer;
pub mod powercut;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod random;
pub mod server;
pub mod site;
pub mod split;
pub mod volume;
pub mod workload;
