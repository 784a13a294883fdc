//! The handlers: one generic path for every kind ([`resource`]), and the connections to pods, services and nodes.

mod body;
mod options;
mod render;
mod resource;
mod table;
mod watch;
mod write;

#[cfg(test)]
mod tests;
