/** `build`: writes the page to `dist/audit-verifier.html`. */
import { mkdir, writeFile } from 'node:fs/promises';
import { fileURLToPath } from 'node:url';
import { buildPage } from '../page/build.ts';

const folder = fileURLToPath(new URL('../../dist/', import.meta.url));
await mkdir(folder, { recursive: true });
await writeFile(`${folder}audit-verifier.html`, await buildPage());
process.stdout.write(`${folder}audit-verifier.html\n`);
