// A client that @hey-api/openapi-ts made: one service with a price, a page, and one that is not there.
import { client } from "./made/client.gen";
import { servicesCreate, servicesGet, servicesList } from "./made";

declare const process: { argv: string[] };
const [url, token, key, model] = process.argv.slice(2) as [string, string, string, string];
client.setConfig({ baseUrl: url, auth: token });
const body = {
  name: key, key, credits: 0, service_type: "Pay-As-You-Go" as const, business_model_id: Number(model),
  pricing: { at_cost: { markup: "1.25" } },
};
void (async () => {
  const made = await servicesCreate({ body });
  const listed = await servicesList({ query: { limit: 1 } });
  const gone = await servicesGet({ path: { id: 2 ** 40 } });
  console.log(JSON.stringify({
    id: made.data?.id, pricing: made.data?.pricing, listed: listed.data?.items.length,
    problem: [gone.error?.title ? "Problem" : "", gone.response?.status],
  }));
})();
