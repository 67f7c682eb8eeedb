//! Process configuration: the annotated files beside their types.
