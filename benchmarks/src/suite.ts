/** One suite in a process of its own: `main.ts` starts it, pinned to a core where that is possible. */
import { append } from './append.ts';
import { audit } from './audit.ts';
import { growth } from './growth.ts';
import { merkle } from './merkle.ts';
import { proxy } from './proxy.ts';
import { sign } from './sign.ts';
import { stores } from './stores.ts';
import { vault } from './vault.ts';
import { verify } from './verify.ts';
import type { Suite, SuiteOptions } from './results.ts';

const SUITES: Readonly<Record<string, Suite>> = { sign, verify, vault, audit, merkle, growth, stores, append, proxy };

const [name = '', options = '{}'] = process.argv.slice(2);
const suite = SUITES[name];
if (suite === undefined) throw new Error(`There is no suite "${name}".`);
const sections = await suite(JSON.parse(options) as SuiteOptions);
if (process.send === undefined) console.dir(sections, { depth: null });
else process.send(sections, undefined, undefined, () => process.disconnect());
