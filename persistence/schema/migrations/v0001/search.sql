-- Finding names by the beginnings of their words: both sides are cut into words the same way.

-- Punctuation would make one word of "acme-eu" or "acme.example". The planner cannot know how many names begin
-- with a text; the cost, seen because the function is not inlined, has it ask the index instead of every row.
CREATE FUNCTION name_words(name text) RETURNS tsvector
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE RETURNS NULL ON NULL INPUT COST 10000 AS $$
BEGIN
    RETURN to_tsvector('simple'::regconfig, regexp_replace(name, '[[:punct:][:space:]]+', ' ', 'g'));
END $$;

-- Null where nothing is left of the text: it finds nothing.
CREATE FUNCTION name_query(wanted text) RETURNS tsquery LANGUAGE sql IMMUTABLE PARALLEL SAFE RETURNS NULL ON NULL INPUT
RETURN (SELECT to_tsquery('simple'::regconfig, string_agg('''' || word || ''':*', ' & '))
          FROM regexp_split_to_table(wanted, '[[:punct:][:space:]]+') AS word WHERE word <> '');

CREATE INDEX organization_words_idx ON organization USING gin (name_words(name));
CREATE INDEX tenant_words_idx ON tenant USING gin (name_words(name));
