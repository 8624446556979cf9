//! Tables read key by key: what is taken is known, what remains is not, and every fault is collected. PURE.
use std::collections::BTreeMap;

use super::fault::{Fault, Hint, Origin, Place, Why};
use super::tree::{Node, Table, Value};

/// What reading found: faults, the keys that exist, and those that nobody asked for.
#[derive(Default)]
pub(super) struct Report {
    faults: Vec<Fault>,
    /// Each table that was read, and its keys, in the order in which they were asked for.
    known: Vec<(String, Vec<&'static str>)>,
    unknown: Vec<(String, String, Place)>,
}

/// One table while it is read.
pub(super) struct Section<'r> {
    path: String,
    rest: Table,
    taken: BTreeMap<&'static str, Option<Place>>,
    known: Vec<&'static str>,
    faults_before: usize,
    report: &'r mut Report,
}

/// Reads the whole tree with `read`, from its root on.
pub(super) fn root<T>(table: Table, read: impl FnOnce(&mut Section<'_>) -> T) -> (T, Report) {
    let mut report = Report::default();
    let value = Section::read(String::new(), table, &mut report, read);
    (value, report)
}

impl Section<'_> {
    fn read<T>(
        path: String,
        rest: Table,
        report: &mut Report,
        read: impl FnOnce(&mut Section<'_>) -> T,
    ) -> T {
        let faults_before = report.faults.len();
        let mut section =
            Section { path, rest, taken: BTreeMap::new(), known: Vec::new(), faults_before, report };
        let value = read(&mut section);
        let Section { path, rest, known, report, .. } = section;
        report.unknown.extend(rest.into_iter().map(|(key, node)| (path.clone(), key, node.place)));
        report.known.push((path, known));
        value
    }

    /// The table `key`; read as an empty one where there is none, so that its keys are known.
    pub fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_>) -> T) -> T {
        let table = match self.remove(key).map(|node| (node.value, node.place)) {
            Some((Value::Table(table), _)) => table,
            Some((_, place)) => {
                self.fault(key, place, Why::NotATable(dotted(&self.path, key)));
                Table::new()
            }
            None => Table::new(),
        };
        Section::read(dotted(&self.path, key), table, self.report, read)
    }

    /// The tables of the array `key`, each with its place; `not_array` is the fault of what is none. Without any, one that is empty is
    /// read for its keys to be known.
    pub fn tables<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&mut Section<'_>, &Place) -> T,
        not_array: fn() -> Why,
    ) -> Vec<T> {
        let path = dotted(&self.path, key);
        let items = match self.remove(key).map(|node| (node.value, node.place)) {
            Some((Value::Array(items), _)) => items,
            Some((_, place)) => {
                self.fault(key, place, not_array());
                Vec::new()
            }
            None => Vec::new(),
        };
        if items.is_empty() {
            let mut aside = Report::default();
            let nowhere = Place { origin: Origin::File, written: None };
            Section::read(path, Table::new(), &mut aside, |section| read(section, &nowhere));
            self.report.known.append(&mut aside.known);
            return Vec::new();
        }
        let mut values = Vec::with_capacity(items.len());
        for (at, Node { value, place }) in items.into_iter().enumerate() {
            match value {
                Value::Table(table) => {
                    let path = format!("{path}[{at}]");
                    values.push(Section::read(path, table, self.report, |section| read(section, &place)));
                }
                _ => self.fault(&format!("{key}[{at}]"), place, not_array()),
            }
        }
        values
    }

    /// The value of `key` as `parse` sees it; `default` where it is not written or refused.
    pub fn take<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&Node) -> Result<T, Why>,
        default: T,
    ) -> T {
        let Some(node) = self.remove(key) else { return default };
        parse(&node).unwrap_or_else(|why| {
            self.fault(key, node.place, why);
            default
        })
    }

    /// The values of the array `key` as `parse` sees each; `not_array` is the fault of what is none. Left out: empty.
    pub fn take_all<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Node) -> Result<T, Why>,
        not_array: Why,
    ) -> Vec<T> {
        let Some(node) = self.remove(key) else { return Vec::new() };
        let Value::Array(items) = node.value else {
            self.fault(key, node.place, not_array);
            return Vec::new();
        };
        let mut values = Vec::with_capacity(items.len());
        for (at, item) in items.into_iter().enumerate() {
            match parse(&item) {
                Ok(value) => values.push(value),
                Err(why) => self.fault(&format!("{key}[{at}]"), item.place, why),
            }
        }
        values
    }

    /// Whether `key` is a table or not written at all.
    pub fn table_or_absent(&self, key: &str) -> bool {
        self.rest.get(key).is_none_or(|node| matches!(node.value, Value::Table(_)))
    }

    /// Where `key`, already taken, was written.
    pub fn written(&self, key: &str) -> Option<Place> {
        self.taken.get(key).cloned().flatten()
    }

    /// Whether no value of this table has been refused: only then are its values worth comparing with each other.
    pub fn faultless(&self) -> bool {
        self.report.faults.len() == self.faults_before
    }

    /// A fault at `key` of this table.
    pub fn fault(&mut self, key: &str, place: Place, why: Why) {
        self.report.faults.push(Fault { place, key: dotted(&self.path, key), why });
    }

    fn remove(&mut self, key: &'static str) -> Option<Node> {
        let node = self.rest.remove(key);
        self.taken.insert(key, node.as_ref().map(|node| node.place.clone()));
        self.known.push(key);
        node
    }
}

impl Report {
    /// Every key that was asked for, dotted.
    pub fn keys(&self) -> Vec<String> {
        let tables: Vec<&str> = self.known.iter().map(|(path, _)| path.as_str()).collect();
        let all = self.known.iter().flat_map(|(path, keys)| keys.iter().map(|key| dotted(path, key)));
        all.filter(|key| !tables.contains(&key.as_str())).collect()
    }

    /// All faults, those of unknown keys among them.
    pub fn into_faults(self) -> Vec<Fault> {
        let unknown = self.unknown.iter().map(|(path, key, place)| Fault {
            place: place.clone(),
            key: dotted(path, &super::fault::printable(key)),
            why: Why::Unknown(self.hint(path, key)),
        });
        let unknown: Vec<Fault> = unknown.collect();
        self.faults.into_iter().chain(unknown).collect()
    }

    /// What `key` in the table `path` may have been meant to be.
    fn hint(&self, path: &str, key: &str) -> Hint {
        let here = self.known.iter().find(|(table, _)| table == path).map_or(&[][..], |(_, keys)| keys);
        let distance = |known: &&&str| strsim::damerau_levenshtein(key, known);
        let near =
            here.iter().min_by_key(distance).filter(|known| distance(known) <= known.len().div_ceil(3));
        let elsewhere =
            || self.known.iter().find(|(_, keys)| keys.contains(&key)).map(|(table, _)| dotted(table, key));
        match (near, elsewhere()) {
            (Some(near), _) => Hint::Near(dotted(path, near)),
            (None, Some(there)) => Hint::Elsewhere(there),
            (None, None) => Hint::Known(here.iter().map(ToString::to_string).collect()),
        }
    }
}

fn dotted(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
