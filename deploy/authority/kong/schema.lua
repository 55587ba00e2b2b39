local typedefs = require "kong.db.schema.typedefs"

return {
  name = "tollkeeper",
  fields = {
    { protocols = typedefs.protocols_http },
    { config = { type = "record", fields = {
      { url = typedefs.url { required = true, default = "http://127.0.0.1:8080" } },
      -- A hold that nobody settles ends after so long.
      { ttl_s = { type = "integer", default = 600, between = { 1, 3600 } } },
      { timeout_ms = { type = "integer", default = 5000, gt = 0 } },
      -- What the provider is asked with, in place of the caller's key.
      { provider_authorization = { type = "string", encrypted = true, referenceable = true } },
    } } },
  },
}
