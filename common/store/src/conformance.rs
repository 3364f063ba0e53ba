//! The contract of [`MailStore`] as code: every engine passes all of it.
//!
//! An engine writes a [`Subject`], which is its store together with the ways in which a mail server
//! and its clients change the same mail, and calls [`conformance!`](crate::conformance!) with an
//! expression that makes an empty one. Each case becomes a test of its own.
#![expect(clippy::missing_panics_doc, reason = "a case panics where an engine breaks the contract")]

use std::{sync::Mutex, time::Duration};

use mailtwin_disk::clock::Clock;
use mailtwin_logic::{
    ids::{Account, Guid, Uid},
    mailbox::{FileKey, Flags, MailboxName},
};

use crate::MailStore;

mod check;
mod fixture;
mod graveyard;
mod lists;
mod messages;
pub mod replication;
mod subject;

pub use check::{
    given_up_messages_may_be_taken_away, inspecting_counts_and_changes_nothing,
    inspecting_finds_what_is_not_what_it_was, mending_gives_back_what_was_recorded,
};
pub use graveyard::graveyard_gives_back_what_it_keeps;
pub use lists::*;
pub use messages::*;
pub use replication::{
    a_master_hands_over, both_ways_with_memory, random_changes_end_equal, replica_keeps_its_own,
};
pub use subject::InMemory;

/// How long the store of a [`Subject`] keeps what it expunges.
pub const KEEP: Duration = Duration::from_hours(7 * 24);

/// A store, and what happens to its mail without it: by a mail server, its clients, and time.
///
/// Actions on what is not there do nothing. All are done when they return, but the store has to
/// find that out by itself.
pub trait Subject {
    /// The store.
    fn store(&self) -> &dyn MailStore;

    /// Delivers a message without flags into a mailbox that is there.
    fn deliver(&self, account: &Account, mailbox: &MailboxName, octets: &[u8]);

    /// Sets all flags and keywords of a message.
    fn set_flags(&self, at: (&Account, &MailboxName, Uid), flags: Flags, keywords: &[&str]);

    /// Expunges a message.
    fn expunge(&self, account: &Account, mailbox: &MailboxName, uid: Uid);

    /// Changes a message's octets where they lie, as a failing disk does: its date stays.
    fn damage(&self, at: (&Account, &MailboxName, Uid), octets: &[u8]);

    /// Creates an empty mailbox, and the account with it.
    fn create(&self, account: &Account, mailbox: &MailboxName);

    /// Renames a mailbox and those below it; nothing happens if a name is taken.
    fn rename(&self, account: &Account, from: &MailboxName, to: &MailboxName);

    /// Deletes a mailbox with its messages, not those below it.
    fn delete(&self, account: &Account, mailbox: &MailboxName);

    /// Writes (or removes) one of the account's files.
    fn write_file(&self, account: &Account, key: &FileKey, content: Option<&[u8]>);

    /// Lets the store's clock go on.
    fn advance(&self, by: Duration);

    /// GUIDs of all messages in the graveyard.
    fn buried(&self) -> Vec<Guid>;

    /// Whether the engine stores a message without octets; if not, it refuses it.
    fn takes_empty_messages(&self) -> bool {
        true
    }

    /// A mailbox name as strange as the engine takes one.
    fn strange_name(&self) -> &'static str {
        "Odd'\t\u{e4}"
    }
}

/// Makes a [`Subject`] on an empty store.
pub type Make<'a> = &'a dyn Fn() -> Box<dyn Subject>;

/// What every engine has to pass.
pub type Case = fn(Make<'_>);

/// Turns every case into a test: `conformance!(run)`, where `run` is a `fn(Case)` that hands a
/// [`Make`] to the case.
#[macro_export]
macro_rules! conformance {
    ($run:expr) => {
        $crate::conformance! { @cases $run;
            stale_plan_changes_nothing
            what_is_kept_is_the_stores_own
            changes_give_the_head_of_the_same_records
            target_raises_uid_next
            modseqs_are_raised_and_never_lowered
            build_is_invisible_until_its_last_batch
            abandoned_build_leaves_nothing
            build_begins_anew_when_it_is_repeated
            build_refuses_a_place_that_is_taken
            build_refuses_a_mailbox_that_is_elsewhere
            build_takes_the_place_of_an_empty_inbox
            additions_below_uid_next_need_a_repair
            repair_takes_another_uid_validity
            delta_tells_what_changed
            expunging_twice_is_nothing_and_updating_what_is_gone_an_error
            wrong_octets_are_refused
            octets_already_held_need_not_come_again
            one_failing_batch_does_not_stop_the_others
            planning_again_completes_what_broke_off
            graveyard_keeps_what_was_expunged
            graveyard_gives_back_what_it_keeps
            foreign_messages_are_told_apart
            names_are_swapped_and_moved_in_chains
            deleted_above_others_and_back_under_another_name
            deleted_and_created_anew_under_one_name
            steps_for_what_has_changed_are_refused_whole
            foreign_messages_hold_up_deletion
            reset_inbox_makes_room
            files_are_written_and_removed
            hostile_names_stay_inside
            random_changes_end_equal
            both_ways_with_memory
            replica_keeps_its_own
            a_master_hands_over
            inspecting_counts_and_changes_nothing
            inspecting_finds_what_is_not_what_it_was
            mending_gives_back_what_was_recorded
            given_up_messages_may_be_taken_away
        }
    };
    (@cases $run:expr; $($case:ident)*) => {
        $(
            #[test]
            fn $case() {
                $run($crate::conformance::$case);
            }
        )*
    };
}

/// Time that goes on only when it is told to, or when somebody waits.
#[derive(Debug)]
pub struct ManualClock(Mutex<Duration>);

impl ManualClock {
    /// Stands at a moment in November 2023.
    pub fn new() -> Self {
        Self(Mutex::new(Duration::from_secs(1_700_000_000)))
    }

    /// Goes on.
    pub fn advance(&self, by: Duration) {
        *self.0.lock().expect("no panic while it is held") += by;
    }
}

impl Default for ManualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for ManualClock {
    fn unix_ms(&self) -> u64 {
        u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        *self.0.lock().expect("no panic while it is held")
    }

    fn pause(&self, time: Duration) {
        self.advance(time);
    }
}
