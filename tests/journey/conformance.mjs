// A server with what the scenarios of MCP's conformance suite ask for: `node conformance.mjs PORT`.
import { randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { Server } from "@modelcontextprotocol/sdk/server/index.js";
import { StreamableHTTPServerTransport } from "@modelcontextprotocol/sdk/server/streamableHttp.js";
import * as types from "@modelcontextprotocol/sdk/types.js";

const PORT = Number(process.argv[2]);
const LOOPBACK = ["127.0.0.1", "localhost", "[::1]"];
const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==";
const SOUND = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";
const sessions = new Map();

const text = said => ({ type: "text", text: said });
const image = { type: "image", data: PIXEL, mimeType: "image/png" };
const embedded = (uri, said) => ({ type: "resource", resource: { uri, mimeType: "text/plain", text: said } });
const answer = (...content) => ({ content });
const object = (properties = {}, required = []) => ({ type: "object", properties, required });
const string = { type: "string" };
const choices = names => names.map(name => ({ const: name, title: `Choice ${name}` }));
const three = start => [1, 2, 3].map(n => `${start}${n}`);
const pause = () => new Promise(done => setTimeout(done, 20));

async function ask(extra, message, schema) {
  const params = { message, requestedSchema: schema };
  const said = await extra.sendRequest({ method: "elicitation/create", params }, types.ElicitResultSchema);
  return answer(text(`action=${said.action}, content=${JSON.stringify(said.content)}`));
}

const log = (extra, data) =>
  extra.sendNotification({ method: "notifications/message", params: { level: "info", data } });

const DEFAULTS = object({
  name: { type: "string", default: "John Doe" },
  age: { type: "integer", default: 30 },
  score: { type: "number", default: 95.5 },
  status: { type: "string", enum: ["active", "inactive", "pending"], default: "active" },
  verified: { type: "boolean", default: true },
});
const ENUMS = object({
  untitledSingle: { type: "string", enum: three("option") },
  titledSingle: { type: "string", oneOf: choices(three("value")) },
  legacyEnum: { type: "string", enum: three("opt"), enumNames: three("Option ") },
  untitledMulti: { type: "array", items: { type: "string", enum: three("option") } },
  titledMulti: { type: "array", items: { anyOf: choices(three("value")) } },
});
const SCHEMA_2020 = {
  $schema: "https://json-schema.org/draft/2020-12/schema",
  type: "object",
  $defs: { address: object({ street: string, city: string }) },
  properties: { name: string, address: { $ref: "#/$defs/address" } },
  additionalProperties: false,
};

// What each tool does, and its arguments where it has some.
const TOOLS = {
  test_simple_text: [() => answer(text("A text."))],
  test_image_content: [() => answer(image)],
  test_audio_content: [() => answer({ type: "audio", data: SOUND, mimeType: "audio/wav" })],
  test_embedded_resource: [() => answer(embedded("test://embedded-resource", "Embedded."))],
  test_multiple_content_types: [
    () => answer(text("Several."), image, embedded("test://mixed-content-resource", "Mixed.")),
  ],
  test_error_handling: [() => ({ ...answer(text("This tool fails.")), isError: true })],
  test_tool_with_logging: [
    async (_, extra) => {
      for (const data of ["started", "at work", "done"]) await log(extra, data).then(pause);
      return answer(text("Logged."));
    },
  ],
  test_tool_with_progress: [
    async (_, extra) => {
      const progressToken = extra._meta?.progressToken;
      for (const progress of progressToken === undefined ? [] : [0, 50, 100]) {
        const params = { progressToken, progress, total: 100 };
        await extra.sendNotification({ method: "notifications/progress", params }).then(pause);
      }
      return answer(text("Arrived."));
    },
  ],
  test_sampling: [
    async ({ prompt }, extra) => {
      const params = { messages: [{ role: "user", content: text(prompt) }], maxTokens: 100 };
      const asked = { method: "sampling/createMessage", params };
      const said = await extra.sendRequest(asked, types.CreateMessageResultSchema);
      return answer(text(`LLM response: ${said.content.text}`));
    },
    object({ prompt: string }, ["prompt"]),
  ],
  test_elicitation: [
    ({ message }, extra) =>
      ask(extra, message, object({ username: string, email: string }, ["username", "email"])),
    object({ message: string }, ["message"]),
  ],
  test_elicitation_sep1034_defaults: [(_, extra) => ask(extra, "Defaults", DEFAULTS)],
  test_elicitation_sep1330_enums: [(_, extra) => ask(extra, "Choices", ENUMS)],
  // Its stream ends before its answer, which a client gets where it goes on from the last event.
  test_reconnection: [
    async (_, extra) => {
      await log(extra, "come again").then(pause);
      sessions.get(extra.sessionId).closeSSEStream(extra.requestId);
      await pause();
      return answer(text("Found again."));
    },
  ],
  json_schema_2020_12_tool: [() => answer(text("Read.")), SCHEMA_2020],
};

const message = content => ({ role: "user", content });
const PROMPTS = {
  test_simple_prompt: [() => [message(text("A prompt."))]],
  test_prompt_with_arguments: [({ arg1, arg2 }) => [message(text(`${arg1} and ${arg2}`))], "arg1", "arg2"],
  test_prompt_with_embedded_resource: [
    ({ resourceUri }) => [message(embedded(resourceUri, "Embedded.")), message(text("Read it."))],
    "resourceUri",
  ],
  test_prompt_with_image: [() => [message(image), message(text("Look at it."))]],
};

const RESOURCES = {
  "test://static-text": { mimeType: "text/plain", text: "A text that stays." },
  "test://static-binary": { mimeType: "image/png", blob: PIXEL },
  "test://watched-resource": { mimeType: "text/plain", text: "Watched." },
};
const TEMPLATE = { uriTemplate: "test://template/{id}/data", name: "template", mimeType: "application/json" };

function read(uri) {
  const id = /^test:\/\/template\/([^/]+)\/data$/.exec(uri)?.[1];
  const found = id ? { mimeType: TEMPLATE.mimeType, text: JSON.stringify({ id }) } : RESOURCES[uri];
  if (!found) throw new types.McpError(types.ErrorCode.InvalidParams, `no resource ${uri}`);
  return { contents: [{ uri, ...found }] };
}

function named(table, name) {
  if (!Object.hasOwn(table, name)) throw new types.McpError(types.ErrorCode.InvalidParams, `no ${name}`);
  return table[name];
}

function newServer() {
  const capabilities = {
    tools: {}, prompts: {}, completions: {}, logging: {}, resources: { subscribe: true },
  };
  const server = new Server({ name: "conformance", version: "1.0.0" }, { capabilities });
  const on = (schema, handler) => server.setRequestHandler(schema, handler);
  const tools = Object.entries(TOOLS).map(([name, [, inputSchema = object()]]) => (
    { name, description: `Tool ${name}`, inputSchema }));
  const prompts = Object.entries(PROMPTS).map(([name, [, ...wanted]]) => (
    { name, description: `Prompt ${name}`, arguments: wanted.map(one => ({ name: one, required: true })) }));
  const resources = Object.entries(RESOURCES).map(([uri, { mimeType }]) => ({ uri, name: uri, mimeType }));
  on(types.ListToolsRequestSchema, () => ({ tools }));
  on(types.CallToolRequestSchema, ({ params }, extra) =>
    named(TOOLS, params.name)[0](params.arguments ?? {}, extra));
  on(types.ListPromptsRequestSchema, () => ({ prompts }));
  on(types.GetPromptRequestSchema, ({ params }) => (
    { messages: named(PROMPTS, params.name)[0](params.arguments ?? {}) }));
  on(types.ListResourcesRequestSchema, () => ({ resources }));
  on(types.ListResourceTemplatesRequestSchema, () => ({ resourceTemplates: [TEMPLATE] }));
  on(types.ReadResourceRequestSchema, ({ params }) => read(params.uri));
  on(types.SubscribeRequestSchema, () => ({}));
  on(types.UnsubscribeRequestSchema, () => ({}));
  on(types.CompleteRequestSchema, () => ({ completion: { values: ["test one", "test two"], total: 2 } }));
  return server;
}

/** What was sent, so that a stream can be resumed. */
class Events {
  sent = new Map();
  async storeEvent(stream, message) {
    const id = `${stream}~${this.sent.size}`;
    this.sent.set(id, { stream, message });
    return id;
  }
  async getStreamIdForEventId(id) {
    return this.sent.get(id)?.stream;
  }
  async replayEventsAfter(last, { send }) {
    const { stream } = this.sent.get(last);
    const ids = [...this.sent.keys()];
    for (const id of ids.slice(ids.indexOf(last) + 1)) {
      const one = this.sent.get(id);
      if (one.stream === stream && one.message.jsonrpc) await send(id, one.message);
    }
    return stream;
  }
}

async function transportOf(request) {
  const id = request.headers["mcp-session-id"];
  if (id) return sessions.get(id);
  const transport = new StreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    eventStore: new Events(),
    retryInterval: 100,
    onsessioninitialized: made => void sessions.set(made, transport),
    onsessionclosed: ended => void sessions.delete(ended),
  });
  await newServer().connect(transport);
  return transport;
}

createServer(async (request, response) => {
  const { host, origin = `http://${host}` } = request.headers;
  // A page of another site is refused, as the transport's rules want it.
  const local = [`http://${host}`, origin].every(one => LOOPBACK.includes(new URL(one).hostname));
  if (!local) return void response.writeHead(403).end("{}");
  const transport = await transportOf(request);
  if (!transport) return void response.writeHead(404).end("{}");
  await transport.handleRequest(request, response);
}).listen(PORT, "127.0.0.1", () => console.log("ready"));
