-- What a billing service told of documents is only added to, and taken away once it is old: by then nobody tells it again.
DROP TRIGGER append_only ON handover_event;
CREATE FUNCTION keep_handover_event() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.created_at < now() - interval '35 days' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'handover_event % stands: % refused', OLD.id, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON handover_event FOR EACH ROW EXECUTE FUNCTION keep_handover_event();
CREATE INDEX handover_event_created_at_idx ON handover_event (created_at);
