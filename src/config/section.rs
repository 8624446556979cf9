//! Reads tables key by key: taken keys are known, remaining keys are unknown, and all faults are collected. PURE.
use std::collections::BTreeMap;

use super::fault::{Fault, Hint, Origin, Place, Why};
use super::tree::{Node, Table, Value};

/// The result of reading: the faults, the known keys, and the unknown keys.
#[derive(Default)]
pub(super) struct Report {
    faults: Vec<Fault>,
    /// Each table that was read, with its known keys in the order of reading.
    known: Vec<(String, Vec<&'static str>)>,
    unknown: Vec<(String, String, Place)>,
}

/// One table while it is being read.
pub(super) struct Section<'r> {
    path: String,
    rest: Table,
    taken: BTreeMap<&'static str, Option<Place>>,
    known: Vec<&'static str>,
    faults_before: usize,
    report: &'r mut Report,
}

/// Reads the whole tree with `read`, starting at its root.
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

    /// Reads the table `key`. A missing table is read as an empty one, so that its keys are known.
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

    /// Reads the tables of the array `key`, each with its place; `not_array` is the fault of any other type of value.
    /// Without any table, an empty one is read so that its keys are known.
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

    /// Returns the value of `key`, parsed by `parse`; `default` if the key is missing or `parse` refuses the value.
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

    /// Returns the values of the array `key`, each parsed by `parse`; empty if the key is missing. `not_array` is the
    /// fault of a value that is no array.
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

    /// Returns whether `key` is a table or missing.
    pub fn table_or_absent(&self, key: &str) -> bool {
        self.rest.get(key).is_none_or(|node| matches!(node.value, Value::Table(_)))
    }

    /// Returns where `key`, which must have been taken, was written.
    pub fn written(&self, key: &str) -> Option<Place> {
        self.taken.get(key).cloned().flatten()
    }

    /// Returns whether no value of this table has been refused. Only then can its values be compared with each other.
    pub fn faultless(&self) -> bool {
        self.report.faults.len() == self.faults_before
    }

    /// Adds a fault at `key` of this table.
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
    /// Returns every known key, dotted.
    pub fn keys(&self) -> Vec<String> {
        let tables: Vec<&str> = self.known.iter().map(|(path, _)| path.as_str()).collect();
        let all = self.known.iter().flat_map(|(path, keys)| keys.iter().map(|key| dotted(path, key)));
        all.filter(|key| !tables.contains(&key.as_str())).collect()
    }

    /// Returns all faults, including those of unknown keys.
    pub fn into_faults(self) -> Vec<Fault> {
        let unknown = self.unknown.iter().map(|(path, key, place)| Fault {
            place: place.clone(),
            key: dotted(path, &super::fault::printable(key)),
            why: Why::Unknown(self.hint(path, key)),
        });
        let unknown: Vec<Fault> = unknown.collect();
        self.faults.into_iter().chain(unknown).collect()
    }

    /// Returns a hint at what the unknown `key` in the table `path` may have been meant to be.
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
