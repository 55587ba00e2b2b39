// Somebody who types what is wrong: into every filter and every field of every form of the pages that are asked.
// Usage: node fields.mjs '{"browser", "profile", "url", "token", "pages", "values", "rubbish"}'; `values` are for fields that name rows.
import { asked, close, found, page, signIn } from "./console.mjs";

Object.assign(found, { silent: [], raw: [], filters: 0, fields: 0, refused: 0 });
const BAD = ".error, .empty.bad, [data-failed], [role=alert], .error-page";

// Whether a page of ours is shown, with its menu; else a person looks at raw text.
const isPage = () => page.evaluate(() => document.contentType === "text/html" && document.querySelector("#menu") !== null);
const said = () => page.evaluate((bad) => [...document.querySelectorAll(bad)].filter((each) => each.checkVisibility()).map((each) => each.textContent.trim()).filter(Boolean), BAD);

async function judge(where, status) {
  if (!(await isPage())) found.raw.push(`${where}: ${status}`);
  else if (status >= 500) found.silent.push(`${where}: ${status}`);
  else if (status >= 400) {
    found.refused += 1;
    if (!(await said()).length) found.silent.push(`${where}: ${status}`);
  }
}

const valuesFor = (isName) => (isName ? asked.values : [asked.rubbish]);

async function typeIntoFilters(path) {
  const filters = await page.evaluate(() => [...document.querySelectorAll("main form.filters input[name]")]
    .filter((each) => ["text", "search"].includes(each.type)).map((each) => ({ name: each.name, isName: each.list !== null })));
  for (const { name, isName } of filters) {
    found.filters += 1;
    for (const value of valuesFor(isName)) {
      await page.goto(asked.url + path);
      await page.evaluate(() => document.querySelectorAll("main details").forEach((each) => { each.open = true; }));
      const input = page.locator(`main form.filters input[name="${name}"]`).first();
      await input.fill(value);
      const answer = page.waitForResponse((each) => each.url().includes(`${name}=`) && !each.url().includes("/find/"));
      await input.press("Enter");
      const response = await answer;
      await response.finished();
      await page.waitForFunction(() => !document.querySelector(".htmx-request"));
      await judge(`${path} ${name}=${value}`, response.status());
    }
  }
  // Without a script, and into what a browser lets nobody type: by the address.
  const names = await page.evaluate(() => [...new Set([...document.querySelectorAll("main form.filters [name]")].map((each) => each.name))]);
  for (const name of names) {
    const response = await page.goto(`${asked.url}${path}${path.includes("?") ? "&" : "?"}${name}=${encodeURIComponent(asked.rubbish)}`);
    await judge(`${path}?${name}`, response.status());
  }
}

async function typeIntoForms(path) {
  await page.goto(asked.url + path);
  const fields = await page.evaluate(() => [...document.querySelectorAll("main form[method=post]")].flatMap((form) =>
    [...form.querySelectorAll("input[name], textarea[name]")].filter((each) => each.localName === "textarea" || each.type === "text")
      .map((each) => ({ action: form.getAttribute("action"), name: each.name, isName: each.hasAttribute("list") }))));
  for (const { action, name, isName } of fields) {
    found.fields += 1;
    for (const value of valuesFor(isName)) {
      await page.goto(asked.url + path);
      await page.evaluate(() => document.querySelectorAll("main details").forEach((each) => { each.removeAttribute("name"); each.open = true; }));
      const form = page.locator(`main form[action="${action}"]`).first();
      if (!(await form.count())) break; // what was done took the form away
      await form.evaluate((each) => { each.noValidate = true; });
      for (const tick of await form.locator("input[name=confirmed]").all()) await tick.check();
      await form.locator(`[name="${name}"]`).first().fill(value);
      const answer = page.waitForResponse((each) => each.request().method() === "POST");
      await form.locator("button[type=submit]").click();
      const response = await answer;
      await page.waitForLoadState("load");
      await judge(`${path} ${action} ${name}=${value}`, response.status());
      if (response.status() === 422 && !(await page.locator(`[name="${name}"]`).evaluateAll((all, text) => all.some((each) => each.value.trim() === text.trim()), value)))
        found.silent.push(`${path} ${action} ${name}: what was typed is gone`);
    }
  }
}

await signIn(asked.token);
for (const path of asked.pages) {
  const response = await page.goto(asked.url + path);
  if (response.status() !== 200 || !(await isPage())) { found.raw.push(`${path}: ${response.status()}`); continue; }
  const [filters, forms] = await page.evaluate(() => [document.querySelector("main form.filters") !== null, document.querySelector("main form[method=post]") !== null]);
  if (filters) await typeIntoFilters(path);
  if (forms) await typeIntoForms(path);
}
await close();
