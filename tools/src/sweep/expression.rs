//! Constraints on the settings of a scenario: `gpus >= num_experts`.

use evalexpr::{ContextWithMutableVariables, HashMapContext, Node, Value as Operand};
use std::collections::{BTreeMap, BTreeSet};
use toml::{Table, Value};

/// A constraint that a scenario must meet to be run.
#[derive(Debug, Clone)]
pub struct Constraint {
    tree: Node,
}

impl Constraint {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn new(text: &str) -> Result<Constraint, String> {
        let tree = evalexpr::build_operator_tree(text)
            .map_err(|error| format!("expected an expression such as `gpus >= 8`: {error}"))?;
        Ok(Constraint { tree })
    }

    /// Whether `settings` meet it.
    ///
    /// # Errors
    /// A name that nothing sets, or a result that is not true or false.
    pub fn holds(&self, settings: &Table) -> Result<bool, String> {
        let variables = variables(settings);
        let mut context = HashMapContext::new();
        for name in self.tree.iter_variable_identifiers() {
            let Some(operand) = variables.get(name) else {
                let known: Vec<&str> = variables.keys().map(String::as_str).collect();
                return Err(format!(
                    "expected settings of [base] or of an axis ({}), found `{name}`",
                    known.join(", ")
                ));
            };
            context
                .set_value(name.to_owned(), operand.clone())
                .map_err(|error| error.to_string())?;
        }
        self.tree
            .eval_boolean_with_context(&context)
            .map_err(|error| format!("expected true or false: {error}"))
    }
}

/// Every number, text and truth value set, under its dotted name and, where no other setting is
/// called the same, under the last part of it. A `-` of a name is `_`, as `-` subtracts.
fn variables(settings: &Table) -> BTreeMap<String, Operand> {
    let mut named = BTreeMap::new();
    let mut taken = BTreeSet::new();
    let mut ambiguous = BTreeSet::new();
    for (path, operand) in leaves("", settings) {
        let short = path.rsplit('.').next().unwrap_or(&path).to_owned();
        if !taken.insert(short.clone()) {
            ambiguous.insert(short.clone());
        }
        named.entry(short).or_insert_with(|| operand.clone());
        named.insert(path, operand);
    }
    for name in ambiguous {
        named.remove(&name);
    }
    named
}

fn leaves(prefix: &str, table: &Table) -> Vec<(String, Operand)> {
    let mut found = Vec::new();
    for (key, value) in table {
        let path = match prefix {
            "" => key.replace('-', "_"),
            _ => format!("{prefix}.{}", key.replace('-', "_")),
        };
        match value {
            Value::Integer(number) => found.push((path, Operand::Int(*number))),
            Value::Float(number) => found.push((path, Operand::Float(*number))),
            Value::Boolean(truth) => found.push((path, Operand::Boolean(*truth))),
            Value::String(text) => found.push((path, Operand::String(text.clone()))),
            Value::Table(inner) => found.extend(leaves(&path, inner)),
            // Strategies: the first stands for all, which an axis sets alike.
            Value::Array(items) => {
                if let Some(Value::Table(first)) = items.first() {
                    found.extend(leaves(&path, first));
                }
            }
            Value::Datetime(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(text: &str) -> Result<bool, String> {
        let settings: Table =
            "seed = 3\n[cluster]\ngpus = 16\n[layer]\nnum-experts = 32\ndtype = 'bf16'\n\
                               [[strategy]]\nbase = 'tutel'\n"
                .parse()
                .unwrap();
        Constraint::new(text)?.holds(&settings)
    }

    #[test]
    fn names_are_short_or_dotted() {
        assert_eq!(holds("gpus >= num_experts"), Ok(false));
        assert_eq!(holds("cluster.gpus * 2 >= layer.num_experts"), Ok(true));
        assert_eq!(holds("dtype == \"bf16\" && seed < 4"), Ok(true));
        assert_eq!(holds("strategy.base == \"tutel\""), Ok(true));
    }

    #[test]
    fn what_is_wrong_is_said() {
        assert!(holds("gpuz > 1").unwrap_err().contains("`gpuz`"));
        assert!(holds("gpus +").is_err());
        assert!(holds("gpus + 1").unwrap_err().contains("true or false"));
    }
}
