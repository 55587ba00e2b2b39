// What others' libraries of Node make of something: `node meet_calls.mjs NAME`, with JSON on standard input.
import { readFileSync } from "node:fs";

const said = JSON.parse(readFileSync(0, "utf8"));
const refusal = (work) => {
  try { work(); } catch (error) { return error.constructor.name; }
  return "none";
};
const calls = {
  async cloudevents() {
    const { HTTP } = await import("cloudevents");
    const read = HTTP.toEvent({ headers: { "content-type": said.type }, body: said.body });
    return read.map((one) => [one.id, one.source, one.type, one.subject, Date.parse(one.time) / 1000, one.data, one.validate()]);
  },
  async standardwebhooks() {
    const { Webhook } = await import("standardwebhooks");
    const { secret, body, fields } = said;
    const old = { ...fields, "webhook-timestamp": String(Number(fields["webhook-timestamp"]) - 3600) };
    return {
      read: new Webhook(secret).verify(body, fields),
      changed: refusal(() => new Webhook(secret).verify(body.replace("{", "{ "), fields)),
      old: refusal(() => new Webhook(secret).verify(body, old)),
      other: refusal(() => new Webhook("whsec_" + "QUJD".repeat(8)).verify(body, fields)),
    };
  },
};
console.log(JSON.stringify(await calls[process.argv[2]]()));
