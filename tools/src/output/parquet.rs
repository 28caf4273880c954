//! Parquet: the rows of the CSV with types.

use super::replace_with;
use crate::error::Error;
use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, RecordBatch, StringArray, UInt64Array,
};
use arrow_schema::{DataType, Field, Schema};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use serde_json::Value;
use std::path::Path;
use std::sync::Arc;

/// Writes `rows`, flat objects of the same keys, to `path`. A column's type is the narrowest of
/// boolean, unsigned, signed, double and text that holds all its values.
///
/// # Errors
/// A file that cannot be written.
pub fn write(path: &Path, rows: &[Value]) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Unexpected(format!("Parquet: {error}"));
    let names: Vec<&String> = rows
        .first()
        .and_then(Value::as_object)
        .map(|row| row.keys().collect())
        .unwrap_or_default();
    let columns: Vec<(Field, ArrayRef)> = names
        .into_iter()
        .map(|name| column(name, rows.iter().map(|row| &row[name]).collect()))
        .collect();
    let fields: Vec<Field> = columns.iter().map(|(field, _)| field.clone()).collect();
    let schema = Arc::new(Schema::new(fields));
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    let batch = RecordBatch::try_new(schema.clone(), arrays).map_err(|error| failed(&error))?;
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .build();
    replace_with(path, |file| {
        let mut writer =
            ArrowWriter::try_new(file, schema, Some(properties)).map_err(|error| failed(&error))?;
        writer.write(&batch).map_err(|error| failed(&error))?;
        writer.close().map_err(|error| failed(&error))?;
        Ok(())
    })
}

fn column(name: &str, values: Vec<&Value>) -> (Field, ArrayRef) {
    let all = |is: fn(&Value) -> bool| values.iter().all(|value| value.is_null() || is(value));
    let some = values.iter().any(|value| !value.is_null());
    let (kind, array): (DataType, ArrayRef) = if some && all(Value::is_boolean) {
        let array: BooleanArray = values.iter().map(|value| value.as_bool()).collect();
        (DataType::Boolean, Arc::new(array))
    } else if some && all(Value::is_u64) {
        let array: UInt64Array = values.iter().map(|value| value.as_u64()).collect();
        (DataType::UInt64, Arc::new(array))
    } else if some && all(Value::is_i64) {
        let array: Int64Array = values.iter().map(|value| value.as_i64()).collect();
        (DataType::Int64, Arc::new(array))
    } else if some && all(Value::is_number) {
        let array: Float64Array = values.iter().map(|value| value.as_f64()).collect();
        (DataType::Float64, Arc::new(array))
    } else {
        let text = |value: &&Value| match value {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let array: StringArray = values.iter().map(text).collect();
        (DataType::Utf8, Arc::new(array))
    };
    (Field::new(name, kind, true), array)
}
