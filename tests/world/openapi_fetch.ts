// A client by types that openapi-typescript made: one service with a price, a page, and one that is not there.
import createClient from "openapi-fetch";
import type { paths } from "./made.js";

declare const process: { argv: string[] };
const [url, token, key, model] = process.argv.slice(2) as [string, string, string, string];
const client = createClient<paths>({ baseUrl: url, headers: { authorization: `Bearer ${token}` } });
const body = {
  name: key, key, credits: 0, service_type: "Pay-As-You-Go" as const, business_model_id: Number(model),
  pricing: { at_cost: { markup: "1.25" } },
};
const made = await client.POST("/admin/v1/services", { body });
const listed = await client.GET("/admin/v1/services", { params: { query: { limit: 1 } } });
const gone = await client.GET("/admin/v1/services/{id}", { params: { path: { id: 2 ** 40 } } });
console.log(JSON.stringify({
  id: made.data?.id, pricing: made.data?.pricing, listed: listed.data?.items.length,
  problem: [gone.error?.title ? "Problem" : "", gone.response.status],
}));
