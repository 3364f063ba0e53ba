//! `dovecot-keywords`: which keyword a letter stands for, `<0 to 25> <name>` a line.

use mailtwin_logic::limits::{KEYWORD_OCTETS_MAX, KEYWORDS_MAX};

/// Longest file that is read, in octets.
pub(crate) const FILE_OCTETS_MAX: u64 = 64 << 10;

/// The names of letters, from `a`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Table(Vec<Option<String>>);

impl Table {
    /// Reads the file's content; lines that make no sense are passed over, as Dovecot does.
    pub(crate) fn parse(content: &[u8]) -> Self {
        let mut table = Self::default();
        for line in content.split(|&octet| octet == b'\n') {
            let line = String::from_utf8_lossy(line);
            let Some((index, name)) = line.split_once(' ') else { continue };
            if let Ok(index @ 0..KEYWORDS_MAX) = index.parse()
                && is_keyword(name)
            {
                if table.0.len() <= index {
                    table.0.resize(index + 1, None);
                }
                if let Some(entry) = table.0.get_mut(index) {
                    *entry = Some(name.to_owned());
                }
            }
        }
        table
    }

    /// A table of names, the first for letter `a`; what does not fit is left out.
    pub(crate) fn of(names: &[String]) -> Self {
        Self(names.iter().take(KEYWORDS_MAX).cloned().map(Some).collect())
    }

    /// The file's content.
    pub(crate) fn render(&self) -> Vec<u8> {
        let lines = self.names().enumerate().map(|(index, name)| format!("{index} {name}\n"));
        lines.collect::<String>().into_bytes()
    }

    /// All names in the order of their letters; a letter without an entry has Dovecot's name for
    /// it.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> {
        self.0
            .iter()
            .enumerate()
            .map(|(index, name)| name.clone().unwrap_or_else(|| unknown(index)))
    }

    /// Name of a letter.
    pub(crate) fn name(&self, index: usize) -> String {
        self.0.get(index).cloned().flatten().unwrap_or_else(|| unknown(index))
    }

    /// Names of the letters in `mask`.
    pub(crate) fn of_mask(&self, mask: u32) -> impl Iterator<Item = String> {
        (0..KEYWORDS_MAX).filter(move |index| mask >> index & 1 == 1).map(|index| self.name(index))
    }

    /// Whether every letter is taken.
    pub(crate) fn is_full(&self) -> bool {
        self.0.len() >= KEYWORDS_MAX
    }

    /// Adds at the end whatever of `names` is missing, as long as there are letters.
    pub(crate) fn extend<'a>(&mut self, names: impl Iterator<Item = &'a str>) {
        for name in names {
            if !self.is_full() && self.letter(name).is_none() {
                self.0.push(Some(name.to_owned()));
            }
        }
    }

    /// Letters of `names`, those without one left out.
    pub(crate) fn mask<'a>(&self, names: impl Iterator<Item = &'a str>) -> u32 {
        names.filter_map(|name| self.letter(name)).fold(0, |mask, index| mask | 1 << index)
    }

    /// Letters that stand for another name in `other`.
    pub(crate) fn changed(&self, other: &Self) -> u32 {
        let differs = |index: &usize| self.name(*index) != other.name(*index);
        (0..KEYWORDS_MAX).filter(differs).fold(0, |mask, index| mask | 1 << index)
    }

    fn letter(&self, name: &str) -> Option<usize> {
        let entry = |(index, held): (usize, &Option<String>)| match held {
            Some(held) => held == name,
            None => unknown(index) == name,
        };
        self.0.iter().enumerate().position(entry)
    }
}

/// Whether a name can stand in the file: one word without control characters.
pub(crate) fn is_keyword(name: &str) -> bool {
    (1..=KEYWORD_OCTETS_MAX).contains(&name.len())
        && !name.chars().any(|c| c.is_control() || c.is_whitespace())
}

fn unknown(index: usize) -> String {
    format!("unknown-{index}")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(table: &Table) -> Vec<String> {
        table.names().collect()
    }

    #[test]
    fn files() {
        let table =
            Table::parse(b"0 $Junk\n2 Work\nx y\n26 z\n99999999999999999999 q\n1\n3 \n4 a b\n");
        assert_eq!(names(&table), ["$Junk", "unknown-1", "Work"]);
        assert_eq!(table.render(), b"0 $Junk\n1 unknown-1\n2 Work\n");
        assert_eq!(names(&Table::parse(b"")), [""; 0]);
        assert_eq!(names(&Table::parse(b"0 torn")), ["torn"]);
    }

    #[test]
    fn letters() {
        let mut table = Table::of(&["a".into(), "b".into()]);
        table.extend(["b", "c"].into_iter());
        assert_eq!(names(&table), ["a", "b", "c"]);
        assert_eq!(table.mask(["a", "c", "none"].into_iter()), 5);
        assert_eq!(table.of_mask(1 | 1 << 7).collect::<Vec<_>>(), ["a", "unknown-7"]);
        assert_eq!(table.changed(&Table::of(&["a".into(), "x".into()])), 6);
        let many: Vec<String> = (0..30).map(|n| format!("k{n}")).collect();
        table.extend(many.iter().map(String::as_str));
        assert!(table.is_full() && names(&table).len() == KEYWORDS_MAX);
    }

    proptest! {
        #[test]
        fn any_octets(content in proptest::collection::vec(any::<u8>(), 0..200)) {
            let table = Table::parse(&content);
            prop_assert!(names(&table).len() <= KEYWORDS_MAX);
            prop_assert_eq!(names(&Table::parse(&table.render())), names(&table));
        }
    }
}
