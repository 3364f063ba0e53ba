//! Takes a parsed TOML table apart, key by key, and collects everything that is wrong with it.

use std::collections::BTreeMap;

use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

use super::ConfigProblem;

/// The problems found so far, each with the place in the text it was found at.
pub(super) struct Problems<'t> {
    file: &'t str,
    text: &'t str,
    found: Vec<(usize, ConfigProblem)>,
}

impl<'t> Problems<'t> {
    pub(super) fn new(file: &'t str, text: &'t str) -> Self {
        Self { file, text, found: Vec::new() }
    }

    /// Notes a problem with `key`, at octet `at` of the text.
    pub(super) fn report(&mut self, at: usize, key: &str, problem: impl Into<String>) {
        let before = self.text.as_bytes().iter().take(at);
        let line = before.filter(|&&octet| octet == b'\n').count() + 1;
        let (file, key, problem) = (self.file.to_owned(), key.to_owned(), problem.into());
        self.found.push((at, ConfigProblem { file, line, key, problem }));
    }

    /// How many there are so far.
    pub(super) fn count(&self) -> usize {
        self.found.len()
    }

    /// All of them, in file order.
    pub(super) fn into_sorted(mut self) -> Vec<ConfigProblem> {
        self.found.sort_by_key(|&(at, _)| at);
        self.found.into_iter().map(|(_, problem)| problem).collect()
    }
}

/// One value, and where it stands.
pub(super) struct Found<T> {
    at: usize,
    /// Its whole name, `section.key`.
    key: String,
    pub(super) value: T,
}

impl<T> Found<T> {
    /// Applies a check; its refusal is reported at this value.
    pub(super) fn check<U>(
        self,
        problems: &mut Problems<'_>,
        check: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        self.convert(problems, check).map(|found| found.value)
    }

    /// As [`Self::check`], and remembers the place for further checks.
    fn convert<U>(
        self,
        problems: &mut Problems<'_>,
        check: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<Found<U>> {
        let Self { at, key, value } = self;
        match check(value) {
            Ok(value) => Some(Found { at, key, value }),
            Err(problem) => {
                problems.report(at, &key, problem);
                None
            }
        }
    }
}

/// A table whose keys are taken one by one; what is left at the end is unknown.
pub(super) struct Section<'t> {
    prefix: String,
    at: usize,
    left: BTreeMap<String, (usize, Spanned<DeValue<'t>>)>,
    known: Vec<&'static str>,
    /// It is no table at all, which is reported already: then nothing is missing in it.
    broken: bool,
}

impl<'t> Section<'t> {
    /// `prefix` is the table's own name, empty for the whole document.
    pub(super) fn new(prefix: &str, at: usize, table: DeTable<'t>) -> Self {
        let entry = |(key, value): (Spanned<_>, _)| {
            let at = key.span().start;
            (std::borrow::Cow::into_owned(key.into_inner()), (at, value))
        };
        let left = table.into_iter().map(entry).collect();
        Self { prefix: prefix.to_owned(), at, left, known: Vec::new(), broken: false }
    }

    /// The whole name of one of its keys.
    pub(super) fn key(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    fn take(&mut self, name: &'static str) -> Option<Found<DeValue<'t>>> {
        self.known.push(name);
        let (_, value) = self.left.remove(name)?;
        Some(Found { at: value.span().start, key: self.key(name), value: value.into_inner() })
    }

    /// Reports that a key which must be there is not.
    pub(super) fn missing(&self, name: &str, problems: &mut Problems<'_>) {
        if !self.broken {
            problems.report(self.at, &self.key(name), "is missing");
        }
    }

    pub(super) fn string(
        &mut self,
        name: &'static str,
        problems: &mut Problems<'_>,
    ) -> Option<Found<String>> {
        self.take(name)?.convert(problems, text)
    }

    /// A value that carries a unit: text, and a bare number is told which units there are.
    pub(super) fn unit<T>(
        &mut self,
        name: &'static str,
        problems: &mut Problems<'_>,
        units: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<Found<T>> {
        self.take(name)?.convert(problems, |value| {
            if let DeValue::String(text) = &value {
                return parse(text);
            }
            if let DeValue::Integer(number) = &value {
                return Err(format!(
                    "{number} has no unit; write it in quotes with one of {units}"
                ));
            }
            Err(wrong(&format!("text in quotes with one of {units}"), &value))
        })
    }

    pub(super) fn boolean(
        &mut self,
        name: &'static str,
        problems: &mut Problems<'_>,
    ) -> Option<bool> {
        self.take(name)?
            .check(problems, |value| value.as_bool().ok_or_else(|| wrong("true or false", &value)))
    }

    pub(super) fn integer(
        &mut self,
        name: &'static str,
        problems: &mut Problems<'_>,
    ) -> Option<Found<i64>> {
        self.take(name)?.convert(problems, |value| {
            let number = value.as_integer().ok_or_else(|| wrong("a whole number", &value))?;
            i64::from_str_radix(number.as_str(), number.radix())
                .map_err(|_| format!("{number} is too large"))
        })
    }

    /// A list of texts; entries of another type are reported and left out.
    pub(super) fn strings(
        &mut self,
        name: &'static str,
        problems: &mut Problems<'_>,
    ) -> Vec<Found<String>> {
        let Some(found) = self.take(name) else { return Vec::new() };
        let key = found.key.clone();
        let list = found.check(problems, |value| array(value, "a list, [\"…\"]"));
        let mut strings = Vec::new();
        for (i, item) in list.into_iter().flatten().enumerate() {
            let (at, key) = (item.span().start, format!("{key}[{i}]"));
            let item = Found { at, key, value: item.into_inner() };
            strings.extend(item.convert(problems, text));
        }
        strings
    }

    /// The section `[name]`, empty if it is not there.
    pub(super) fn section(&mut self, name: &'static str, problems: &mut Problems<'_>) -> Self {
        let key = self.key(name);
        let Some(found) = self.take(name) else {
            return Section::new(&key, self.at, DeTable::new());
        };
        let at = found.at;
        let table = found.check(problems, |value| table(value, &format!("the section [{key}]")));
        let broken = table.is_none();
        Section { broken, ..Section::new(&key, at, table.unwrap_or_default()) }
    }

    /// The sections `[[name]]`, in order.
    pub(super) fn sections(
        &mut self,
        name: &'static str,
        problems: &mut Problems<'_>,
    ) -> Vec<Self> {
        let key = self.key(name);
        let Some(found) = self.take(name) else { return Vec::new() };
        let list = found.check(problems, |value| array(value, &format!("sections [[{key}]]")));
        let mut sections = Vec::new();
        for (i, item) in list.into_iter().flatten().enumerate() {
            let (at, key) = (item.span().start, format!("{key}[{i}]"));
            let item = Found { at, key: key.clone(), value: item.into_inner() };
            let table = item.check(problems, |value| table(value, "a section"));
            sections.extend(table.map(|table| Section::new(&key, at, table)));
        }
        sections
    }

    /// Reports every key that nobody took.
    pub(super) fn finish(self, problems: &mut Problems<'_>) {
        for (name, (at, _)) in &self.left {
            let known = self.known.join(", ");
            let problem = format!("unknown key; known here: {known}");
            problems.report(*at, &self.key(name), problem);
        }
    }
}

fn text(value: DeValue<'_>) -> Result<String, String> {
    if let DeValue::String(text) = value {
        return Ok(text.into_owned());
    }
    Err(wrong("text in quotes", &value))
}

fn array<'t>(value: DeValue<'t>, expected: &str) -> Result<DeArray<'t>, String> {
    if let DeValue::Array(list) = value {
        return Ok(list);
    }
    Err(wrong(expected, &value))
}

fn table<'t>(value: DeValue<'t>, expected: &str) -> Result<DeTable<'t>, String> {
    if let DeValue::Table(table) = value {
        return Ok(table);
    }
    Err(wrong(expected, &value))
}

fn wrong(expected: &str, found: &DeValue<'_>) -> String {
    format!("expected {expected}, found {}", describe(found))
}

fn describe(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{text:?}"),
        DeValue::Integer(number) => format!("the number {number}"),
        DeValue::Float(_) => "a number".to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a section".to_owned(),
    }
}
