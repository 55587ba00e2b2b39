-- Prices that are about more calls than are rated again at once: up to which call that is done, and who set them.
CREATE TABLE rerating_left (
    price_id BIGINT NOT NULL,
    after_id BIGINT NOT NULL,
    actor TEXT NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT rerating_left_pkey PRIMARY KEY (price_id),
    CONSTRAINT rerating_left_price_id_fkey FOREIGN KEY(price_id) REFERENCES price (id)
);
