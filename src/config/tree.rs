//! The configuration as a tree of values with their places: the values of the file, overlaid by `--set`. PURE.
use std::collections::BTreeMap;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::fault::{Fault, Origin, Place, Why, printable};

/// The maximum number of segments of a key; a `--set` with more is refused before it becomes a tree.
const DEEPEST: usize = 4;

/// The entries of a table.
pub(super) type Table = BTreeMap<String, Node>;

/// A value and the place where it was written.
#[derive(Debug)]
pub(super) struct Node {
    pub place: Place,
    pub value: Value,
}

/// A TOML value of a type that the configuration uses.
#[derive(Debug)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Bool(bool),
    Array(Vec<Node>),
    Table(Table),
    /// A float, a date, or an integer out of the range of `i64`: no option takes these.
    Other,
}

impl Value {
    /// Returns whether this is a table or an array of tables: faults show only its key.
    fn is_tables(&self) -> bool {
        match self {
            Self::Table(_) => true,
            Self::Array(items) => items.iter().any(|item| item.value.is_tables()),
            _ => false,
        }
    }
}

/// Returns the tree of `text`, overlaid by `sets`. For a file that is not valid TOML, returns only syntax faults:
/// the text after a broken line cannot be checked.
pub(super) fn read(text: &str, sets: &[String]) -> Result<Table, Vec<Fault>> {
    let source = Source::new(text);
    let (root, errors) = DeTable::parse_recoverable(text);
    let mut faults: Vec<Fault> = errors.iter().map(|err| source.syntax(err)).collect();
    let mut table = source.table(root.into_inner());
    faults.extend(sets.iter().filter_map(|set| overlay(&mut table, set).err()));
    if faults.is_empty() { Ok(table) } else { Err(faults) }
}

/// A text, with the data that names places in it.
struct Source<'t> {
    text: &'t str,
    /// The offset of each line; `None` if the text is the value of a `--set`.
    lines: Option<Vec<usize>>,
    set: &'t str,
}

impl<'t> Source<'t> {
    fn new(text: &'t str) -> Self {
        let begins = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { text, lines: Some(std::iter::once(0).chain(begins).collect()), set: "" }
    }

    fn origin(&self, at: usize) -> Origin {
        match &self.lines {
            Some(lines) => Origin::Line(lines.partition_point(|begin| *begin <= at)),
            None => Origin::Set(printable(self.set)),
        }
    }

    fn syntax(&self, err: &toml::de::Error) -> Fault {
        let origin = self.origin(err.span().map_or(0, |span| span.start));
        // The parser reports a bare word as an unquoted string, or as a float if it begins like one, such as `info`.
        let bare_word = ["string values must be quoted", "invalid float, expected `"];
        let bare_word = bare_word.iter().any(|told| err.message().starts_with(told));
        let message = match err.span().and_then(|span| self.text.get(span)) {
            Some(nothing) if bare_word && nothing.trim().is_empty() => "a value is missing",
            _ if bare_word => "string values must be quoted, as \"info\"",
            _ => err.message(),
        };
        let why = Why::Syntax(printable(message));
        Fault { place: Place { origin, written: None }, key: String::new(), why }
    }

    fn table(&self, table: DeTable<'_>) -> Table {
        table
            .into_iter()
            .map(|(key, value)| (key.get_ref().to_string(), self.node(key.span().start, value)))
            .collect()
    }

    /// Converts a value; `at` is the offset that faults report: of its key, or of the item itself in an array.
    fn node(&self, at: usize, value: Spanned<DeValue<'_>>) -> Node {
        let written = self.text.get(value.span()).map(printable);
        let value = match value.into_inner() {
            DeValue::String(text) => Value::Text(text.into_owned()),
            DeValue::Integer(number) => {
                i64::from_str_radix(number.as_str(), number.radix()).map_or(Value::Other, Value::Integer)
            }
            DeValue::Boolean(yes) => Value::Bool(yes),
            DeValue::Array(items) => {
                Value::Array(items.into_iter().map(|item| self.node(item.span().start, item)).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(table)),
            DeValue::Float(_) | DeValue::Datetime(_) => Value::Other,
        };
        let written = written.filter(|_| !value.is_tables());
        Node { place: Place { origin: self.origin(at), written }, value }
    }
}

/// Overlays `root` with `set`: replaces the value of the key and creates the tables that lead to it.
fn overlay(root: &mut Table, set: &str) -> Result<(), Fault> {
    let origin = Origin::Set(printable(set));
    let fault =
        |why| Fault { place: Place { origin: origin.clone(), written: None }, key: String::new(), why };
    let (key, text) = set.split_once('=').ok_or_else(|| fault(Why::NotASetting))?;
    let path: Vec<&str> = key.split('.').map(str::trim).collect();
    let [tables @ .., last] = path.as_slice() else { return Err(fault(Why::NotASetting)) };
    if path.len() > DEEPEST || path.iter().any(|segment| segment.is_empty()) {
        return Err(fault(Why::NotASetting));
    }
    let mut table = root;
    for segment in tables {
        let place = Place { origin: origin.clone(), written: None };
        table = enter(table, segment, place);
    }
    table.insert((*last).to_owned(), set_value(set, text.trim()));
    Ok(())
}

/// Returns the table at `key`; creates it if there is none, and replaces a value of another type.
fn enter<'t>(table: &'t mut Table, key: &str, place: Place) -> &'t mut Table {
    let fresh = || Value::Table(Table::new());
    let node = table.entry(key.to_owned()).or_insert_with(|| Node { place, value: fresh() });
    if !matches!(node.value, Value::Table(_)) {
        node.value = fresh();
    }
    match &mut node.value {
        Value::Table(inner) => inner,
        _ => unreachable!("a table since the lines above"),
    }
}

/// Parses the value of a `--set`: as TOML if it is valid, else as plain text, so that `bbr` and `60s` need no quotes.
fn set_value(set: &str, text: &str) -> Node {
    let source = Source { text, lines: None, set };
    match DeValue::parse(text) {
        Ok(value) => source.node(0, value),
        Err(_) => {
            let written = if text.is_empty() { "\"\"".to_owned() } else { printable(text) };
            let place = Place { origin: source.origin(0), written: Some(written) };
            Node { place, value: Value::Text(text.to_owned()) }
        }
    }
}
