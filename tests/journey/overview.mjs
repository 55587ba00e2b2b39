// Pictures of the Overview, light and dark. Usage: node overview.mjs '{"browser", "profile", "url", "token", "folder"}'; answers what its tiles say.
import { chromium } from "playwright-core";

const asked = JSON.parse(process.argv[2]);
const context = await chromium.launchPersistentContext(asked.profile, {
  executablePath: asked.browser,
  headless: true,
  viewport: { width: 1280, height: 800 },
  args: ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
});
context.setDefaultTimeout(30000);
const page = context.pages()[0] ?? (await context.newPage());
await page.goto(`${asked.url}/sign-in`);
await page.fill("#token", asked.token);
await page.keyboard.press("Enter");
await page.waitForURL(`${asked.url}/`);
for (const scheme of ["light", "dark"]) {
  await page.emulateMedia({ colorScheme: scheme });
  await page.goto(asked.url);
  await page.waitForSelector(".plot canvas");
  await page.waitForTimeout(500);
  await page.screenshot({ path: `${asked.folder}/overview-${scheme}.png` });
}
console.log(JSON.stringify({ text: await page.innerText("main") }));
await context.close();
