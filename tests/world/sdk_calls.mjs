// Ask one thing by an SDK of Node, and print what came of it: `node sdk_calls.mjs NAME URL KEY MODEL PROMPT TOOL`.
const [name, url, apiKey, model, content, tool] = process.argv.slice(2);
const headers = { "x-tollkeeper-user": "alice" };
const messages = [{ role: "user", content }];
const show = (text) => process.stdout.write(text ?? "");
const calls = {
  async ai() {
    const { jsonSchema, stepCountIs, streamText } = await import("ai");
    const { createOpenAI } = await import("@ai-sdk/openai");
    const made = createOpenAI({ baseURL: `${url}/v1`, apiKey, headers });
    let failure;
    const onError = ({ error }) => { failure = error; };
    const inputSchema = jsonSchema({ type: "object", properties: { place: { type: "string" } }, required: ["place"] });
    const execute = async ({ place }) => `${place} is near`;
    const offered = tool ? { tools: { [tool]: { inputSchema, execute } }, stopWhen: stepCountIs(3) } : {};
    const said = { model: made.chat(model), prompt: content, onError, ...offered };
    for await (const text of streamText(said).textStream) show(text);
    if (failure) throw failure;
  },
  async openai() {
    const { OpenAI } = await import("openai");
    const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, defaultHeaders: headers });
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    for await (const chunk of stream) show(chunk.choices[0]?.delta?.content);
  },
  async anthropic() {
    const { Anthropic } = await import("@anthropic-ai/sdk");
    const client = new Anthropic({ baseURL: url, apiKey, defaultHeaders: headers });
    const stream = await client.messages.create({ model, messages, max_tokens: 256, stream: true });
    for await (const event of stream) show(event.delta?.text);
  },
  async google() {
    const { GoogleGenAI } = await import("@google/genai");
    const client = new GoogleGenAI({ apiKey, httpOptions: { baseUrl: url, headers } });
    const stream = await client.models.generateContentStream({ model, contents: content });
    for await (const chunk of stream) show(chunk.text);
  },
};
await calls[name]();
