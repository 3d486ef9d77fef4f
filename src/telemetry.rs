//! What operators see: metrics, health and logs.

pub mod health;
pub mod log;
pub mod metric;
