// Every screen at some sizes, light and dark.
// Usage: node screens.mjs '{"browser", "profile", "url", "token", "pages", "sizes"}'.
import { asked, close, looked, signIn } from "./console.mjs";

await signIn(asked.token);
await looked(asked.pages, asked.sizes);
await close();
