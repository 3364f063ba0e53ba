//! Every constant limit of the system, with its reason. Reaching one is an error or a metric,
//! never a surprise.

/// Largest frame on the wire, header excluded. Bodies go in chunks of [`CHUNK_OCTETS`].
pub const FRAME_OCTETS_MAX: usize = 1 << 20;

/// Octets of a message in one frame: large enough to be cheap, small enough to let other
/// mailboxes' frames in between.
pub const CHUNK_OCTETS: usize = 64 << 10;

/// Changes in one apply. With [`SLICE_OCTETS`], bounds the time a mailbox's lock is held and the
/// work lost when a connection breaks.
pub const SLICE_CHANGES: usize = 500;

/// Octets of message bodies in one apply, unless a single message is larger.
pub const SLICE_OCTETS: u64 = 16 << 20;

/// Messages of a mailbox that is built aside on a replica, whole before anybody sees it. One that has
/// more is placed with so many, and then added to: a copy that breaks off begins anew with no more.
pub const BUILD_CHANGES: usize = 20 * SLICE_CHANGES;

/// The same in octets.
pub const BUILD_OCTETS: u64 = 64 * SLICE_OCTETS;

/// Octets of records in one message, by `Record::weight`: leaves room for the rest of the frame.
pub const RECORDS_WEIGHT_MAX: usize = FRAME_OCTETS_MAX / 2;

/// Mailboxes or files in one frame of a listing: names may be long.
pub const LISTING_PER_FRAME: usize = 400;

/// Mailboxes visited at once on one link.
pub const IN_FLIGHT: usize = 32;

/// Longest account file (Sieve script, subscriptions, access list, annotations) that is replicated.
pub const FILE_OCTETS_MAX: u64 = 512 << 10;

/// Keywords of one mailbox: what a Maildir file name has letters for.
pub const KEYWORDS_MAX: usize = 26;

/// Keywords of one message or mailbox in a message on the wire: more than any engine has.
pub const WIRE_KEYWORDS_MAX: usize = 256;

/// Longest keyword, in octets.
pub const KEYWORD_OCTETS_MAX: usize = 255;

/// Longest hint (see `Record::hint`), in octets.
pub const HINT_OCTETS_MAX: usize = 2048;

/// Visits waiting on one link before no more log entries are read for it.
pub const PENDING_MAX: usize = 10_000;

/// Streams open at once on one connection: every visit has one, and the link itself a few.
pub const STREAMS_MAX: usize = 2 * IN_FLIGHT;

/// Reasons against a promotion that a node names.
pub const BLOCKERS_MAX: usize = 50;

/// Longest name of a node in a greeting, in octets: it goes to the log before anybody is believed.
pub const NODE_OCTETS_MAX: usize = 255;

/// Characters of what the other side says of an error, as far as they are kept and shown.
pub const TOLD_MAX: usize = 1000;

/// Messages of one mailbox, as another node may list them: what the largest `dovecot-uidlist` that
/// is read can hold.
pub const LISTED_RECORDS_MAX: usize = 4 << 20;

/// Mailboxes, or files, of one account, as another node may list them.
pub const LISTED_MAILBOXES_MAX: usize = 256 << 10;

/// Accounts of one store, as another node may list them.
pub const LISTED_ACCOUNTS_MAX: usize = 1 << 20;

/// Frames of one list: a list that never ends is no list.
pub const LISTED_PARTS_MAX: usize = 1 << 20;

/// UIDs left out in each mailbox of a dead master that somebody else continues: it may have shown them
/// to clients, for messages that nobody else has, and they must not become another message's.
pub const UID_MARGIN: u32 = 1_000;

/// MODSEQs left out likewise: clients that have seen them would not hear of what gets lower ones.
pub const MODSEQ_MARGIN: u64 = 1_000_000;
