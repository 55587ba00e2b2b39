// A person with a browser: everything is done by keyboard, then looked at on a phone and in the dark.
// Usage: node browser.mjs '{"browser", "profile", "url", "token", "name", "tenant", "invoice", "budget", "organization"}'; answers one line of JSON.
import { asked, close, found, looked, page, signOut } from "./console.mjs";

Object.assign(found, { landed: [] });
const keys = page.keyboard;

// Press Tab until an element is reached, as a person without a mouse does.
async function tabTo(selector, most = 120) {
  for (let pressed = 0; pressed < most; pressed += 1) {
    if (await page.evaluate((wanted) => document.activeElement?.matches(wanted), selector)) return;
    await keys.press("Tab");
  }
  throw new Error(`Tab never reaches ${selector}`);
}

// Keyboard alone: the door, the live overview, the search, a tenant, a recharge.
await page.goto(asked.url);
await page.waitForURL("**/sign-in");
await tabTo("#token");
await keys.type(asked.token);
await keys.press("Enter");
await page.waitForURL(`${asked.url}/`);
await tabTo(".menu a[href='/health']");
await keys.press("Enter");
await page.waitForURL("**/health");
await page.waitForSelector(".plot canvas");
await page.waitForFunction(() => /[1-9][\d,]* in all/.test(document.querySelector("#live").textContent));
const first = await page.textContent("#live .health");
await page.waitForFunction((text) => document.querySelector("#live .health").textContent !== text, first);
found.live = true;
await tabTo(".menu a[href='/tenants']");
await keys.press("Enter");
await page.waitForURL("**/tenants");
await keys.press("/");
await keys.type(asked.name);
await page.waitForFunction(() => document.querySelectorAll("#list tbody tr").length === 1);
found.searched = page.url().includes("search=");
await tabTo("#list tbody a");
// The list comes once more, as a late answer of the search does: who stands on a link still stands on it.
const before = await page.evaluateHandle(() => document.querySelector("#list"));
await page.evaluate(() => htmx.trigger("form.filters", "change"));
await page.waitForFunction((list) => !list.isConnected && document.querySelector("#list"), before);
await keys.press("Enter");
await page.waitForURL(`**/tenants/${asked.tenant}`);
found.before = await page.textContent("#remaining");
await tabTo("#actions summary");
await keys.press("Enter");
await tabTo("input[name=amount]");
await keys.type("1,000");
await keys.press("Enter");
await page.waitForURL("**done=recharge");
found.after = await page.textContent("#remaining");
found.said = (await page.textContent("[role=status]")).trim();

// What is wrong comes back beside its field.
await page.click("summary:text-is('Adjust')");
await page.fill("#actions form[action$=adjust] input[name=amount]", "-3");
await page.click("#actions form[action$=adjust] button[type=submit]");
await page.waitForSelector("#actions details[open] .error");
found.refused = (await page.textContent("#actions details[open] .wrong .error")).trim();

// A budget, raised until a time: in the list it is a bar.
await page.goto(`${asked.url}/budgets?organization_id=${asked.organization}`);
await page.click("#list tbody a:text-is('Browser budget')");
await page.waitForURL(`**/budgets/${asked.budget}`);
found.left = await page.textContent("#remaining");
await page.click("summary:text-is('Raise')");
await page.fill("#actions form[action$=raise] input[name=amount]", "20");
await page.fill("#actions form[action$=raise] input[name=until]", "2999-01-31T00:00");
await page.fill("#actions form[action$=raise] input[name=reason]", "a fair");
await page.click("#actions form[action$=raise] button[type=submit]");
await page.waitForURL("**done=raise");
found.raised = (await page.textContent("#use .notice")).trim();
found.bar = (await page.$$("#use svg.quota rect.used")).length;

// The form of a budget is a sentence, and says what it means while it is filled in.
await page.goto(`${asked.url}/budgets/new`);
await page.selectOption(".sentence select[name=each]", "user");
await page.fill(".sentence input[name=tenant_id]", String(asked.tenant));
await page.fill(".sentence input[name=amount]", "20");
await page.selectOption(".sentence select[name=unit]", "money");
await page.selectOption(".sentence select[name=interval]", "day");
await page.waitForSelector(".sentence + div .notice");
found.meaning = (await page.textContent(".sentence + div .notice")).trim();

// A key, shown once.
await page.goto(`${asked.url}/api-keys/new?tenant_id=${asked.tenant}`);
await page.fill("input[name=name]", "browser");
await page.click("main button[type=submit]");
found.key = await page.textContent("#secret");
await page.click("main a:text-is('Back')");
found.listed = (await page.textContent("main")).includes(found.key.slice(0, 8));

// The search of every page: a key's beginning and a whole key lead to the key, and the address never has more of it.
const key = () => /\/api-keys\/\d+$/.test(location.pathname) && !location.search;
for (const said of [found.key.slice(0, 8), found.key]) {
  await page.goto(`${asked.url}/calls`);
  await tabTo(".search input[name=q]");
  await keys.type(said);
  await keys.press("Enter");
  await page.waitForFunction(key);
}
found.path = new URL(page.url()).pathname;
await page.fill(".search input[name=q]", asked.name);
await keys.press("Enter");
await page.waitForURL("**/search");
await tabTo(`.hits a[href="/tenants/${asked.tenant}"]`);
await keys.press("Enter");
await page.waitForURL(`**/tenants/${asked.tenant}`);

// The explorer: a chart over its table; what is pressed is in the address, and drawn anew.
const drawn = async () => (await page.$$("#report .plot canvas")).length === 1;
do await page.goto(`${asked.url}/usage?measure=tokens`); while (!(await page.$("table.report")));
await page.waitForSelector("#report .plot canvas");
const models = await page.textContent("table.report tbody");
await tabTo(".pill input[value=tenant]");
await keys.press("Space");
await page.waitForURL("**group_by=tenant**");
await page.waitForFunction((text) => document.querySelector("table.report tbody")?.textContent !== text, models);
await page.waitForSelector("#report .plot canvas");
found.explored = (await drawn()) && (await page.textContent("table.report thead")).includes("Tenant");
const series = () => page.evaluate(() => document.querySelector("#report .u-legend tr:nth-child(2) .u-marker").style.background);
const light = await series();
await page.emulateMedia({ colorScheme: "dark" });
await page.waitForFunction((before) => document.querySelector("#report .u-legend tr:nth-child(2) .u-marker").style.background !== before, light);
found.redrawn = await drawn();
await page.emulateMedia({ colorScheme: "light" });
found.file = await page.getAttribute("#report .pager a", "href");
await page.goto(`${asked.url}/calls`);
await page.click("#list tbody a");
await page.waitForURL("**/calls/*");
found.call = new URL(page.url()).pathname;

// An invoice from draft to final.
await page.goto(`${asked.url}/invoices/${asked.invoice}`);
await page.click("summary:text-is('Finalize')");
await page.check("form[action$=finalize] input[name=confirmed]");
await page.click("form[action$=finalize] button[type=submit]");
await page.waitForURL("**done=finalize");
found.invoice = (await page.textContent("main .under .mark")).trim();

// Light and dark: what the machine says, until a person says otherwise.
const background = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
found.light = await background();
await page.emulateMedia({ colorScheme: "dark" });
found.dark = await background();
await page.click("[data-theme-toggle]");
found.switched = await background();
await page.reload();
found.kept = await background();

// Phone, tablets and desk, light and dark: nothing is wider than the screen, and nothing keeps a person out (axe-core).
const paths = ["/", "/health", "/tenants", `/tenants/${asked.tenant}`, "/organizations", "/services/new", "/audit-log",
  `/invoices/${asked.invoice}`, "/credit-additions", "/reconciliation", "/receivables",
  "/usage", "/usage?group_by=tenant,user,model&shape=lines&range=24h", "/calls", found.call, found.path,
  "/budgets", "/budgets/new", "/usage?range=24h", "/?range=7d", `/budgets/${asked.budget}`, "/organizations/1", "/search?q=a", "/search?q=nobody", "/tenants?sort=-name"];
const sizes = [[1440, "dark"], [1024, "light"], [768, "dark"], [360, "light"]];
await looked(paths, sizes);
await page.click(".bar .menu-button");
await page.click(".menu a[href='/tenants']");
await page.waitForURL("**/tenants");
found.menu = await page.isHidden("#menu");

await signOut();

// People who are not staff, by keyboard: each lands on the own page. Who has a key asks for more, and rotates it.
for (const [secret, paths] of asked.people) {
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.goto(`${asked.url}/sign-in`);
  await tabTo("#token");
  await keys.type(secret);
  await keys.press("Enter");
  await page.waitForURL((url) => url.pathname !== "/sign-in");
  found.landed.push(new URL(page.url()).pathname);
  await looked(paths, sizes);
  await page.setViewportSize({ width: 1280, height: 900 });
  if (secret.startsWith("tk_")) {
    await tabTo("#budgets summary");
    await keys.press("Enter");
    await tabTo("input[name=amount]");
    await keys.type("30");
    await tabTo("input[name=reason]");
    await keys.type("a fair");
    await keys.press("Enter");
    await page.waitForURL("**done=asked");
    found.asked = (await page.textContent("#asked .mark")).trim();
    await tabTo("form[action$=rotate] button");
    await keys.press("Enter");
    await page.waitForSelector("#secret");
    found.rotated = await page.textContent("#secret");
  }
  if (paths.includes("/account")) {
    await page.goto(`${asked.url}/account`);
    await tabTo("#buy-credits");
    await keys.type("1000");
    await keys.press("Enter");
    await page.waitForSelector("main a.primary");
    found.checkout = (await page.textContent("main a.primary")).trim();
    await looked(["/account/credits"], sizes, () => {});
    await page.setViewportSize({ width: 1280, height: 900 });
  }
  await signOut();
}
await close();
