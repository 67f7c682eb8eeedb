-- Profile `design` (T1–T3, C14): a database of the customer's own making. Nothing is managed in it but the schema
-- `public` itself, which customers may fill and which may have been dropped by hand.
CREATE SCHEMA IF NOT EXISTS public;
