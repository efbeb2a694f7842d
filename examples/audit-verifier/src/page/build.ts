/** Builds the page: one HTML file with script and style inside, and a policy that allows these two and nothing else. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const at = (name: string): string => fileURLToPath(new URL(name, import.meta.url));
const hashOf = (text: string): string => `'sha256-${createHash('sha256').update(text).digest('base64')}'`;

/** The whole page. The same sources give the same bytes. */
export async function buildPage(): Promise<string> {
  const [template, style, bundle] = await Promise.all([
    readFile(at('./index.html'), 'utf8'),
    readFile(at('./style.css'), 'utf8'),
    build({ entryPoints: [at('./page.ts')], bundle: true, minify: true, format: 'esm', target: 'es2022', charset: 'utf8', conditions: ['@keyguard/source'], write: false, logLevel: 'silent' }),
  ]);
  const script = bundle.outputFiles[0]!.text.trim();
  if (script.includes('</script')) throw new Error('The script would end its own element.');
  const policy = `default-src 'none'; script-src ${hashOf(script)}; style-src ${hashOf(style)}; base-uri 'none'; form-action 'none'`;
  // By functions, because a script may well hold "$&".
  return template.replace('%POLICY%', () => policy).replace('%STYLE%', () => style).replace('%SCRIPT%', () => script);
}
