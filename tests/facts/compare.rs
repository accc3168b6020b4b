//! Two agents' answers to the same command, normalised: stock is asked before and
//! after the other. What stock answered alike both times the other answers too; a
//! number that went on in between lies between both. So no list of counters is
//! needed, and nothing that only stands still by chance is taken for one. Lists are
//! compared as sets whose elements are known by [`IDENTITY`].
//!
//! Pure.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::runner::Test;

pub(crate) const TESTS: &[Test] = &[("differences_are_found", differences_are_found)];

/// The members that tell one element of a list from another.
const IDENTITY: &[&str] = &[
    "name",
    "mountpoint",
    "iface",
    "destination",
    "mask",
    "desprefixlen",
    "ip-address",
    "logical-id",
    "phys-index",
    "cpu",
    "user",
];

/// Somewhere the two differ.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Difference {
    /// Where: members with `.` in front, `[]` for any element of a list.
    pub(crate) at: String,
    /// Which element of the last list, to read.
    pub(crate) element: String,
    /// What stock has there.
    pub(crate) stock: Option<Value>,
    /// What the other has there.
    pub(crate) other: Option<Value>,
}

/// Stock was not the same before and after, in something that is no number.
#[derive(Debug, PartialEq)]
pub(crate) struct Unsteady(pub(crate) String);

/// Where `other` is not what `before` and `after` say.
pub(crate) fn differences(before: &Value, other: &Value, after: &Value) -> Result<Vec<Difference>, Unsteady> {
    let mut found = Vec::new();
    compare(before, other, after, &Place::default(), &mut found)?;
    Ok(found)
}

#[derive(Clone, Default)]
struct Place {
    at: String,
    element: String,
}

impl Place {
    fn differs(&self, stock: Option<&Value>, other: Option<&Value>) -> Difference {
        let Self { at, element } = self.clone();
        Difference { at, element, stock: stock.cloned(), other: other.cloned() }
    }
}

fn compare(
    before: &Value,
    other: &Value,
    after: &Value,
    place: &Place,
    found: &mut Vec<Difference>,
) -> Result<(), Unsteady> {
    match (before, after) {
        (Value::Object(_), Value::Object(_)) => {
            let [Some(before), Some(after)] = [before, after].map(members) else { unreachable!("objects") };
            let Some(other) = members(other) else {
                found.push(place.differs(Some(&json!(before)), Some(other)));
                return Ok(());
            };
            each(&before, &other, &after, found, |name| Place { at: format!("{}.{name}", place.at), ..place.clone() })
        }
        (Value::Array(old), Value::Array(new)) => {
            let Value::Array(list) = other else {
                found.push(place.differs(Some(before), Some(other)));
                return Ok(());
            };
            each(&elements(old), &elements(list), &elements(new), found, |key| Place {
                at: format!("{}[]", place.at),
                element: key.to_owned(),
            })
        }
        (Value::Number(_), Value::Number(_)) => {
            let [low, high] = if at_most(before, after) { [before, after] } else { [after, before] };
            if !(at_most(low, other) && at_most(other, high)) {
                found.push(place.differs(Some(after), Some(other)));
            }
            Ok(())
        }
        _ if before == after => {
            if other != before {
                found.push(place.differs(Some(before), Some(other)));
            }
            Ok(())
        }
        _ => Err(Unsteady(format!("{}: {before}, then {after}", place.at))),
    }
}

/// Whether both are numbers, and the first is not the greater.
fn at_most(one: &Value, other: &Value) -> bool {
    // A float has fewer digits than a time in nanoseconds.
    match (one.as_i64(), other.as_i64()) {
        (Some(one), Some(other)) => one <= other,
        _ => one.as_f64().zip(other.as_f64()).is_some_and(|(one, other)| one <= other),
    }
}

fn members(value: &Value) -> Option<BTreeMap<String, &Value>> {
    Some(value.as_object()?.iter().map(|(name, value)| (name.clone(), value)).collect())
}

/// The elements of a list by what tells them apart, and by their order where
/// nothing does.
fn elements(list: &[Value]) -> BTreeMap<String, &Value> {
    let key = |value: &Value| match value {
        Value::Object(members) => {
            let known = IDENTITY.iter().filter_map(|name| members.get(*name));
            known.map(|value| value.to_string().trim_matches('"').to_owned()).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    let mut sorted: Vec<(String, &Value)> = list.iter().map(|value| (key(value), value)).collect();
    sorted.sort_by_cached_key(|(key, value)| (key.clone(), value.to_string()));
    let mut elements = BTreeMap::new();
    for (key, value) in sorted {
        let nth = (1..).map(|nth| if nth == 1 { key.clone() } else { format!("{key} ({nth})") });
        let free = { nth }.find(|key| !elements.contains_key(key)).expect("a free name");
        elements.insert(free, value);
    }
    elements
}

fn each(
    before: &BTreeMap<String, &Value>,
    other: &BTreeMap<String, &Value>,
    after: &BTreeMap<String, &Value>,
    found: &mut Vec<Difference>,
    place: impl Fn(&str) -> Place,
) -> Result<(), Unsteady> {
    for (key, old) in before {
        let place = place(key);
        let new = after.get(key).ok_or_else(|| Unsteady(format!("{} {key} went", place.at)))?;
        match other.get(key) {
            Some(value) => compare(old, value, new, &place, found)?,
            None => found.push(place.differs(Some(old), None)),
        }
    }
    if let Some(key) = after.keys().find(|key| !before.contains_key(*key)) {
        return Err(Unsteady(format!("{} {key} came", place(key).at)));
    }
    let only = other.iter().filter(|(key, _)| !before.contains_key(*key));
    found.extend(only.map(|(key, value)| place(key).differs(None, Some(value))));
    Ok(())
}

fn differences_are_found() {
    let list = |size: u64, count: u64| json!([{ "name": "a", "size": size, "tags": ["x", "y"] }, { "name": "b", "count": count }, { "name": "b" }]);
    let swapped = json!([{ "name": "b" }, { "count": 6, "name": "b" }, { "name": "a", "tags": ["y", "x"], "size": 3 }]);
    assert_eq!(differences(&list(3, 5), &swapped, &list(3, 7)), Ok(vec![]));
    let at = |other: &Value| -> Vec<String> {
        let found = differences(&list(3, 5), other, &list(3, 7)).expect("steady");
        found.into_iter().map(|one| format!("{} {}", one.at, one.element)).collect()
    };
    let [same, late, early] = [list(3, 6), list(3, 8), list(3, 4)];
    assert_eq!(at(&same), [""; 0]);
    for other in [late, early] {
        assert_eq!(at(&other), ["[].count b"]);
    }
    assert_eq!(at(&list(4, 6)), ["[].size a"], "what stands still is compared exactly");
    assert_eq!(at(&json!([])), ["[] a", "[] b", "[] b (2)"]);
    assert_eq!(at(&json!({})), [" "]);
    let more = json!([{ "name": "a", "size": "3", "tags": ["x"], "more": null }, { "name": "b" }, { "name": "c" }]);
    let found = ["[].size a", "[].tags[] \"y\"", "[].more a", "[].count b", "[] b (2)", "[] c"];
    assert_eq!(at(&more), found);
    let gone = json!([{ "name": "a", "size": 3, "tags": ["x", "y"] }]);
    differences(&list(3, 5), &swapped, &gone).expect_err("stock's own list changed");
    differences(&gone, &swapped, &list(3, 5)).expect_err("stock's own list changed");
    differences(&json!("a"), &json!("a"), &json!("b")).expect_err("stock's own word changed");
    let [time, later] = [1_795_397_673_641_922_000_i64, 1_795_397_673_641_922_001];
    assert_eq!(differences(&json!(time), &json!(time), &json!(later)), Ok(vec![]));
    assert_eq!(differences(&json!(time), &json!(later + 1), &json!(later)).expect("steady").len(), 1);
}
