-- One row per place outside the role's own schemas (:define; :write is what it may fill besides): how many rows it has, and
-- a sum over which row versions these are. A row that is changed, replaced, locked or gone changes the sum.
WITH here AS (SELECT oid FROM pg_database WHERE datname = current_database()), home AS (SELECT oid FROM pg_namespace WHERE nspname = ANY (:define)),
own_relation AS (
    SELECT oid, reltoastrelid FROM pg_class WHERE relnamespace IN (SELECT oid FROM home)
), relation AS (
    SELECT oid FROM own_relation
    UNION ALL SELECT reltoastrelid FROM own_relation WHERE reltoastrelid <> 0
    UNION ALL SELECT indexrelid FROM pg_index WHERE indrelid IN (SELECT reltoastrelid FROM own_relation WHERE reltoastrelid <> 0)
), type AS (
    SELECT oid FROM pg_type WHERE typnamespace IN (SELECT oid FROM home)
), own AS MATERIALIZED (
    SELECT oid FROM relation UNION ALL SELECT oid FROM type
    UNION ALL SELECT oid FROM pg_constraint WHERE connamespace IN (SELECT oid FROM home)
    UNION ALL SELECT oid FROM pg_attrdef WHERE adrelid IN (SELECT oid FROM relation)
    UNION ALL SELECT oid FROM pg_rewrite WHERE ev_class IN (SELECT oid FROM relation)
    UNION ALL SELECT oid FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM relation)
    UNION ALL SELECT oid FROM pg_statistic_ext WHERE stxnamespace IN (SELECT oid FROM home)
    -- A range type brings constructors, and a multirange type a cast.
    UNION ALL SELECT oid FROM pg_proc WHERE pronamespace IN (SELECT oid FROM home)
    UNION ALL SELECT oid FROM pg_cast WHERE castsource IN (SELECT oid FROM type) OR casttarget IN (SELECT oid FROM type)
)
