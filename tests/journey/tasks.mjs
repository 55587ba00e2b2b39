// Five people do their tasks at the console, by clicks and typing alone; how many of each a task takes is counted.
// Usage: node tasks.mjs '{"browser", "profile", "url", "token", …}'; `found.tasks` has [who, task, clicks, fields, what the page says].
import { asked, close, found, page, signIn, signOut } from "./console.mjs";

Object.assign(found, { tasks: [], undone: [] });
let clicks = 0;
let fields = 0;

async function click(selector) {
  clicks += 1;
  await page.locator(selector).first().click();
  await page.waitForLoadState("load");
}

// Enter in a field is a click less than a button.
async function type(selector, text, enter = false) {
  fields += 1;
  const input = page.locator(selector).first();
  await input.fill(text);
  await input.press(enter ? "Enter" : "Tab");
  if (enter) await page.waitForLoadState("load");
}

async function choose(selector, value) { clicks += 1; await page.locator(selector).first().selectOption(value); }
const text = async (selector) => (await page.locator(selector).first().innerText()).trim();
const menu = (title) => click(`.menu a:text-is("${title}")`);
const open = (summary) => click(`summary:has-text("${summary}")`);
const see = (words) => page.locator(`main :text("${words}")`).first().waitFor();

// A task begins on the page after signing in; what it answers shows that it is done.
async function task(who, what, steps) {
  clicks = fields = 0;
  const before = page.url();
  try {
    const said = await steps();
    found.tasks.push([who, what, clicks, fields, said]);
  } catch (error) {
    found.undone.push(`${who}, ${what}: ${error.message.slice(0, 300)}`);
  }
  await page.goto(before);
}

async function as(token, who, tasks) {
  await signIn(token);
  for (const [what, steps] of Object.entries(tasks)) await task(who, what, steps);
  await signOut();
}

await as(asked.token, "platform admin", {
  "a team in an organization": async () => {
    await menu("Tenants");
    await click("a:text-is('New tenant')");
    await type("main input[name=name]", "Research");
    await type("main input[name=organization_id]", "Acme Robotics");
    await click("main button[type=submit]");
    return text("[role=status]");
  },
  "a key for an engineer": async () => {
    await click("a:text-is('New API key')");
    await type("main input[name=tenant_id]", "Search");
    await type("main input[name=name]", "Grace's laptop");
    await type("main input[name=user]", "grace");
    await click("main button[type=submit]");
    return text("#secret");
  },
  "each user 20 dollars a day": async () => {
    await click("a:text-is('New budget')");
    await choose(".sentence select[name=each]", "user");
    await type(".sentence input[name=organization_id]", "Acme Robotics");
    await type(".sentence input[name=amount]", "20");
    await see("may use $20.00 a day");
    await click("main form button[type=submit]:has-text('Create')");
    return text("h1");
  },
  "why was this refused": async () => {
    await type(".search input[name=q]", asked.ids.refused, true);
    await page.waitForURL("**/calls/**");
    return text("#steps .mark.bad, .mark.bad");
  },
  "spend of one organization": async () => {
    await type("main input[name=organization_id]", "Acme Robotics", true);
    await page.waitForURL("**organization_id=**");
    return text(".tile .figure");
  },
});

await as(asked.key, "engineer", {
  "what is left": async () => text("#budgets tbody tr"),
  "ask for more": async () => {
    await open("Ask for more");
    await type("#budgets input[name=amount]", "30");
    await type("#budgets input[name=reason]", "a fair");
    await click("#budgets details[open] button");
    return text("#asked .mark");
  },
  "why was this refused": async () => { await click("tr:has-text('429') a[href^='/me/calls/']"); return text("main ol"); },
  "copy a snippet": async () => { await click("main button[data-copy]"); return text("main pre"); },
  "rotate": async () => { await click("form[action$=rotate] button"); return text("#secret"); },
});

await as(asked.lead, "team lead", {
  "who spends": async () => { await menu("Tenant"); return text("h1"); },
  "decide a raise request": async () => { await menu("Tenant"); return text("#asked"); },
  "each of us 5 a day": async () => {
    await click("a:text-is('New budget')");
    await choose(".sentence select[name=each]", "user");
    await type(".sentence input[name=amount]", "5");
    await see("may use $5.00 a day");
    await click("main form button[type=submit]:has-text('Create')");
    return text("h1");
  },
  "a new key": async () => {
    await click("a:text-is('New API key')");
    await type("main input[name=name]", "shared");
    await click("main button[type=submit]");
    return text("#secret");
  },
  "refused calls of the team": async () => {
    await menu("Calls");
    await choose("main [name=reason]", "budget_exceeded");
    await page.waitForURL("**reason=**");
    await see("429");
    return text("#list tbody tr");
  },
});

await as(asked.token, "platform admin", {
  "a raise request waits": async () => {
    await page.waitForSelector("#menu summary .mark");
    await click("#trouble a:has-text('more of a budget')");
    await click("#list tbody a");
    await see("Of the budget now");
    await click("form[action$=approve] button[type=submit]");
    return text("[role=status]");
  },
});

await as(asked.finance, "finance", {
  "invoice a customer": async () => {
    await click("a:text-is('New invoice')");
    await click("main nav a:text-is('Last month')");
    await type("main input[name=organization_id]", "Bolt");
    await click("main button[type=submit]");
    return text("[role=status]");
  },
  "invoice all of a month": async () => {
    await menu("Invoices");
    await click("a:text-is('Invoice a month')");
    await click("input[name=confirmed]");
    await click("main button[type=submit]");
    return text("#done tbody");
  },
  "record money that came in": async () => {
    await menu("Invoices");
    await click(`#list a[href="/invoices/${asked.ids.invoice}"]`);
    await type("form[action$=payments] input[name=amount]", "1.00");
    await type("form[action$=payments] input[name=reference]", "bank-77");
    await click("form[action$=payments] input[name=confirmed]");
    await click("form[action$=payments] button[type=submit]");
    return text("#history");
  },
  "give a line back": async () => {
    await menu("Invoices");
    await click(`#list a[href="/invoices/${asked.ids.invoice}"]`);
    await open("Draft a credit note");
    await click("input[name=lines]");
    await click("form[action$=credit-note] button[type=submit]");
    return text("h1");
  },
  "revenue, tax and entries of last month": async () => {
    await click("#menu summary");
    const seen = [];
    for (const title of ["Revenue", "Taxes", "Ledger entries"]) {
      await menu(title);
      await click("main nav a:text-is('Last month')");
      seen.push(await text("h1"));
    }
    return seen.join(", ");
  },
});

await as(asked.customer, "customer", {
  "balance and grants": async () => { await menu("Account"); return text("main .tiles"); },
  "buy credits": async () => { await menu("Account"); return text("#credits, main section:has-text('credits')"); },
  "make a key": async () => {
    await click("a:text-is('New API key')");
    await type("main input[name=tenant_id]", "Search");
    await type("main input[name=name]", "own");
    await click("main button[type=submit]");
    return text("#secret");
  },
  "use by model": async () => { await menu("Account"); return text("main table"); },
  "an invoice's file": async () => { await menu("Account"); return page.getAttribute("main a[href^='/invoices/'][href$='.csv']", "href"); },
});
await close();
